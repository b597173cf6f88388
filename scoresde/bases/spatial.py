"""Spatial axes of signals and images."""

from __future__ import annotations

from collections.abc import Sequence

from scoresde.checks import expect, whole


def spatial_axes(event_shape: Sequence[int], spatial: int | None) -> int:
    """Number of spatial axes, the last ones: 1 for signals, 2 for images, 3 for volumes.

    The others are channels.

    Args:
        event_shape: Shape of one event.
        spatial: The number; 1 if None and the event has one axis, else 2.

    Raises:
        ValueError: If it is not 1, 2 or 3, or the event has fewer axes.
    """
    spatial = min(len(event_shape), 2) if spatial is None else spatial
    whole("spatial", spatial, 0)
    expect(spatial in (1, 2, 3), "spatial", "1 (signals), 2 (images) or 3 (volumes)", spatial)
    expect(
        len(event_shape) >= spatial,
        "event_shape",
        f"{spatial} axes or more, the last {spatial} of them spatial",
        tuple(event_shape),
    )
    return spatial
