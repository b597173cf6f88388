"""A generator in the place of torch's default one, for code that takes none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from scoresde.internals.dispatch_mode import DispatchMode

_aten = torch.ops.aten

# These take no generator in some versions of torch; what fills a tensor does in all.
_LIKE = {
    _aten.rand_like.default: _aten.uniform_.default,
    _aten.randn_like.default: _aten.normal_.default,
    _aten.randint_like.default: _aten.random_.to,
    _aten.randint_like.low_dtype: getattr(_aten.random_, "from"),
}
# Overloads that take a generator, where an operation has some without.
_SEEDED = {"default": "generator", "low": "low_generator"}


class DefaultGenerator(DispatchMode):
    """Inside, what this thread draws from torch's global generator comes from the given one.

    For initial weights and `torch.distributions`, which take no generator. The global one is
    neither read nor seeded: other threads notice nothing.

    Args:
        generator: On any device; numbers for another one are drawn there and moved.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Calls an operation, with our generator if it draws."""
        keywords = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded not in func.tags or keywords.get("generator"):
            return func(*args, **keywords)
        if func in _LIKE:
            args = (torch.empty_like(args[0], **keywords), *args[1:])
            func, keywords = _LIKE[func], {}
        elif not any(argument.name == "generator" for argument in func._schema.arguments):
            name = _SEEDED.get(func._overloadname)
            func = getattr(func.overloadpacket, str(name))
        return self._drawn(func, args, keywords)

    def _drawn(self, func: Any, args: Sequence[Any], keywords: dict[str, Any]) -> Any:
        """An operation's numbers, drawn where the generator is."""
        device, keywords = self.generator.device, {**keywords, "generator": self.generator}
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        if not tensors:
            target = torch.device(keywords.get("device") or device)
            return func(*args, **{**keywords, "device": device}).to(target)
        target = tensors[0].device
        if target == device or target.type == "meta":  # where there are no numbers
            return func(*args, **keywords)
        moved = [arg.to(device) if isinstance(arg, Tensor) else arg for arg in args]
        drawn = func(*moved, **keywords)
        in_place = func._schema.arguments[0].alias_info is not None
        return tensors[0].copy_(drawn) if in_place else drawn.to(target)
