"""Models of the diffusers library, as estimators.

A discrete-time model of noise ``alpha_k^2 = prod_(j <= k) (1 - beta_j)`` is a continuous one at its
``N`` steps; between them its noise is interpolated (`scoresde.Tabulated`), and the network is given
the step, which may be a fraction.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from estimators.adapters import NetworkAdapter
from estimators.denoising import Denoising
from estimators.networks import ResidualMLP
from scoresde.bases import Identity
from scoresde.checks import expect, instance, look_up, real, whole
from scoresde.internals import limits
from scoresde.internals.messages import join_names
from scoresde.schedules import Tabulated
from scoresde.sdes.diagonal import DiagonalSDE

_PREDICTIONS = {"epsilon": "noise", "v_prediction": "velocity", "sample": "denoised"}
"""What networks are said to predict there, and what it is called here."""

_COSINE = 0.008
"""The offset of Nichol and Dhariwal 2021, eq. 17, and the largest beta that they allow."""
_LARGEST = 0.999


def _linear(first: float, last: float, count: int) -> Tensor:
    return torch.linspace(first, last, count, dtype=torch.float64)


def _scaled_linear(first: float, last: float, count: int) -> Tensor:
    return _linear(first**0.5, last**0.5, count) ** 2


def _cosine(first: float, last: float, count: int) -> Tensor:
    u = torch.linspace(0, 1, count + 1, dtype=torch.float64)
    signal = ((u + _COSINE) / (1 + _COSINE) * math.pi / 2).cos() ** 2
    return (1 - signal[1:] / signal[:-1]).clamp(max=_LARGEST)


def _sigmoid(first: float, last: float, count: int) -> Tensor:
    # 6: as diffusers has it
    return first + (last - first) * torch.linspace(-6, 6, count, dtype=torch.float64).sigmoid()


_BETAS: dict[str, Callable[[float, float, int], Tensor]] = {
    "linear": _linear,
    "scaled_linear": _scaled_linear,
    "squaredcos_cap_v2": _cosine,
    "sigmoid": _sigmoid,
}


_DDPM = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler")
"""Their files may leave out betas: diffusers' default ones are then theirs."""

_CONSISTENCY = ("LCMScheduler", "TCDScheduler")
"""Have betas, and networks that jump to data, which is no denoised mean."""

_OTHER_NOISE = {
    "rescale_betas_zero_snr": "a last step of no signal at all has an infinite log-SNR",
    "use_flow_sigmas": "that of a rectified flow is no DDPM's",
    "snr_shift_scale": "steps of a shifted log-SNR are no DDPM's",
}
"""What a scheduler beside its betas may say of noise, and why it is not read."""

_FILES = {"unet": "config.json", "scheduler": "scheduler_config.json"}


class _StepOfLevel(nn.Module):
    """From what estimators tell networks of the noise to the steps that these were trained on."""

    def __init__(self, schedule: Tabulated) -> None:
        super().__init__()
        self.schedule = schedule

    def forward(self, noise_level: Tensor) -> Tensor:
        return self.schedule.step(4 * noise_level)


Folder = str | os.PathLike[str] | Mapping[str, Mapping[str, Any]]


def from_diffusers(
    folder: Folder,
    network: nn.Module | None = None,
    condition: str = "class_labels",
) -> Denoising:
    """A pretrained ``UNet2DModel`` and its scheduler, for every solver, likelihood and guidance.

    At the model's own steps the results are the same: ``DDIM`` on them, with
    ``final_denoise=True``, gives the samples of diffusers' ``DDIMScheduler`` with
    ``clip_sample=False``. The model may be trained further. A network with classes takes labels as
    conditions, ``(batch,)`` whole numbers.

    Args:
        folder: Of a pipeline, as ``save_pretrained`` writes it or the Hugging Face hub's snapshots
            have it: ``unet/config.json``, its weights, and ``scheduler/scheduler_config.json``, or
            these files in the folder itself. Or the content of the two,
            ``{"unet": ..., "scheduler": ...}``, with a network.
        network: Instead of that described by ``unet``, which needs the library.
        condition: The network's name for a condition.

    Raises:
        FileNotFoundError: If a file is missing.
        ImportError: If diffusers is not installed and no network is given.
        TypeError: If ``folder`` is neither a path nor a mapping beside a network.
        ValueError: If the model's network, prediction or noise schedule is of an unknown kind, or
            weights are missing.

    Example:
        >>> import json, tempfile, torch
        >>> from pathlib import Path
        >>> from estimators import ResidualMLP, from_diffusers
        >>> from solvers import DDIM
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name, about in {
        ...     "config": {"sample_size": 4, "in_channels": 1},
        ...     "scheduler_config": {"beta_schedule": "linear", "beta_start": 1e-4,
        ...         "beta_end": 0.02, "num_train_timesteps": 1000, "prediction_type": "epsilon"},
        ... }.items():
        ...     _ = (folder / f"{name}.json").write_text(json.dumps(about))
        >>> model = from_diffusers(folder, ResidualMLP((1, 4, 4), 8, 1))
        >>> DDIM(10).sample(model, (3,)).shape
        torch.Size([3, 1, 4, 4])
    """
    about = _read("unet", folder)
    schedule, prediction = _noise(_read("scheduler", folder))
    if network is None:
        network = _unet(_file("unet", folder).parent, about)
    instance("network", network, nn.Module)
    sde = DiagonalSDE(schedule, Identity(_shape(about)))
    adapted = NetworkAdapter(network, _StepOfLevel(schedule), condition)
    return Denoising(sde, adapted, parametrization=prediction)


from_diffusers.example = {  # type: ignore[attr-defined]
    "folder": {
        "unet": {"sample_size": [1, 3], "in_channels": 1},
        "scheduler": {"beta_schedule": "linear"},
    },
    "network": ResidualMLP((1, 1, 3), 8, 1),
}


def _facts(folder: Folder, **_: Any) -> dict[str, Any]:
    """Facts about its data, as of `scoresde.app.facts.facts_of`."""
    about, shape = _read("unet", folder), _shape(_read("unet", folder))
    # latents of another network have no shades
    latent = not isinstance(folder, Mapping) and _latent(_path(folder) / "model_index.json")
    facts: dict[str, Any] = {"event_shape": shape, "bins": 256}
    if latent or shape[0] not in (1, 3):
        facts["bins"] = None
    count = about.get("num_class_embeds")
    if not count:
        return facts
    return {**facts, "classes": [*map(str, range(count))], "class_counts": [1] * count}


from_diffusers.facts = _facts  # type: ignore[attr-defined]


def _latent(path: Path) -> bool:
    return path.exists() and any(name.endswith("vae") for name in _json(path))


def _shape(about: Mapping[str, Any]) -> list[int]:
    """Shape of events, ``(channels, height, width)``."""
    size, channels = about.get("sample_size"), about.get("in_channels")
    shape = [channels, *(size if isinstance(size, (list, tuple)) else [size, size])]
    for value in shape:
        whole("folder: unet: in_channels, sample_size", value, 1)
    return [int(value) for value in shape if value]


def _noise(about: Mapping[str, Any]) -> tuple[Tabulated, str]:
    """The schedule that a scheduler's file describes, and what its network predicts."""
    _expect_ddpm(about)
    prediction = look_up("prediction_type", about.get("prediction_type", "epsilon"), _PREDICTIONS)
    betas = about.get("trained_betas")
    if betas is None:
        make = look_up("beta_schedule", about.get("beta_schedule", "linear"), _BETAS)
        # diffusers' defaults, which its files may leave out
        first, last = about.get("beta_start", 1e-4), about.get("beta_end", 0.02)
        count = about.get("num_train_timesteps", 1000)
        real("beta_start", first, 0, 1)
        real("beta_end", last, 0, 1)
        whole("num_train_timesteps", count, 2)
        betas = make(first, last, count)
    return Tabulated.of((1 - torch.as_tensor(betas, dtype=torch.float64)).cumprod(0)), prediction


def _expect_ddpm(about: Mapping[str, Any]) -> None:
    """Raises ``ValueError`` if a scheduler's noise is no DDPM's, or betas do not say all of it."""
    name = about.get("_class_name")
    says = about.get("beta_schedule") or about.get("trained_betas") is not None
    known = name in _DDPM or (says and name not in _CONSISTENCY)
    wanted = "one of a DDPM's noise, with beta_schedule or trained_betas"
    expect(known, "folder: scheduler", wanted, name or f"only {sorted(about)}")
    for setting, why in _OTHER_NOISE.items():
        expect(not about.get(setting), setting, f"false: {why}", about.get(setting))
    # networks are then told log(sigma) / 4
    kind = about.get("timestep_type", "discrete")
    expect(kind == "discrete", "timestep_type", "'discrete'", repr(kind))


def _read(part: str, folder: Folder) -> Mapping[str, Any]:
    """The configuration of a network or a scheduler in a folder."""
    if isinstance(folder, Mapping):
        instance(f"folder: {part}", folder.get(part), Mapping)
        return folder[part]
    return _json(_file(part, folder))


def _file(part: str, folder: Any) -> Path:
    """Where a configuration is: in a folder of its own, or beside the other one."""
    root, name = _path(folder), _FILES[part]
    for path in (root / part / name, root / name):
        if path.exists():
            return path
    raise FileNotFoundError(f"{root}: expected {part}/{name}, or {name} in the folder itself")


def _path(folder: Any) -> Path:
    if not isinstance(folder, str):
        instance("folder", folder, os.PathLike)
    return Path(folder)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(limits.read(path, limits.JSON))
    except ValueError as error:
        raise ValueError(f"{path}: expected a JSON file, got {error}") from error
    expect(isinstance(content, dict), str(path), "a JSON object", content)
    about: dict[str, Any] = content
    return about


def _unet(folder: Path, about: Mapping[str, Any]) -> nn.Module:
    name, channels = about.get("_class_name", "UNet2DModel"), about.get("in_channels")
    expect(name == "UNet2DModel", "folder: unet", "a UNet2DModel", name)
    outputs = about.get("out_channels", channels)
    wanted = f"{channels}, as in_channels (variances that it says, too, are for a network= to drop)"
    expect(outputs == channels, "folder: unet: out_channels", wanted, outputs)
    try:
        from diffusers import UNet2DModel
    except ImportError as error:
        wanted = "reading a pretrained network needs diffusers: pip install 'scoresde[diffusers]'"
        raise ImportError(f"{wanted}, or give the network itself") from error
    network, found = UNet2DModel.from_pretrained(
        folder, local_files_only=True, low_cpu_mem_usage=False, output_loading_info=True
    )
    missing = sorted(found["missing_keys"])
    got = f"none of {join_names(missing, 3)}"
    expect(not missing, str(folder), "all weights of the network", got)
    evaluated: nn.Module = network.eval()
    return evaluated
