"""Pictures to the latents that denoisers see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from diffusemble.training.feeds.base import patches

VALUES_AT_ONCE = 3 * 512 * 512  # through the VAE together: the experts of a small card leave no room for more


def units_of(vae: Any) -> dict[str, Any]:
    """What turns a VAE's own latents z into those of its denoisers, by the names of its configuration.

    (z - ``shift_factor``) ``scaling_factor``; of VAEs with statistics of every channel, (z - ``latents_mean``)
    ``scaling_factor`` / ``latents_std`` (Qwen-Image, which has no factor).
    """
    names = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
    return {name: vae.config.get(name) for name in names}


@torch.no_grad()
def to_latents(squares: Sequence[Float[Tensor, "3 h w"]], vae: Any) -> Float[Tensor, "n c i j"]:
    """The mean of the VAE's posterior of pictures in [-1, 1], in the units of its denoisers, float32 on the CPU.

    Those of FLUX.2 see squares of 2 x 2 latents as one, measured by the statistics that its VAE keeps of them.

    Raises:
        ValueError: such squares do not cover the latents.
    """
    at_once = max(1, VALUES_AT_ONCE // squares[0].numel())
    films = "temperal_downsample" in vae.config  # Qwen-Image's VAE takes films; a picture is one of a single frame
    means = []
    for pixels in torch.stack(list(squares)).to(vae.dtype).split(at_once):
        given = pixels.to(vae.device)
        mean = vae.encode(given[:, :, None] if films else given).latent_dist.mode()
        means.append((mean[:, :, 0] if films else mean).float().cpu())
    own, units = torch.cat(means), units_of(vae)
    if hasattr(vae, "bn"):
        patches(own.shape[2], own.shape[3], 2)
        own, deviation = functional.pixel_unshuffle(own, 2), (vae.bn.running_var + vae.bn.eps).sqrt()
        return ((own - _each(vae.bn.running_mean, 0.0)) / _each(deviation, 1.0)).contiguous()
    shift = _each(units["latents_mean"], units["shift_factor"] or 0.0)
    return ((own - shift) * ((units["scaling_factor"] or 1.0) / _each(units["latents_std"], 1.0))).contiguous()


def _each(channels: Tensor | Sequence[float] | None, otherwise: float) -> Tensor:
    """A number for every channel, ``[c 1 1]``, or one for all."""
    numbers = torch.as_tensor(otherwise if channels is None else channels, dtype=torch.float32, device="cpu")
    return numbers.view(-1, 1, 1)
