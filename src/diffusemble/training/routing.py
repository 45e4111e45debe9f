"""Terms that keep an aggregator from trusting one expert alone, and the objective that a configuration describes.

Averaging n experts takes variance out of their error; maps that become one-hot give that up. Every term is zero for
equal shares, and its gradient reaches the aggregator through the maps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from diffusemble.aggregators.recording import Recorded, record_attention
from diffusemble.training.config import ObjectiveConfig
from diffusemble.training.objective import Batch, Denoise, Diffusion, Objective, prediction_error
from diffusemble.training.weighting import error_weights

_TINY = 1e-30  # inside logarithms: x log x must be 0 at 0, and -log 0 finite


def missing_entropy(maps: Float[Tensor, "b n h w"]) -> Float[Tensor, " b"]:
    """1 - H(A) / log n, averaged over positions: 0 for equal shares, 1 for one-hot maps."""
    return _divergence_to_mean(maps).mean(dim=(1, 2))


def divergence_from_mean(maps: Float[Tensor, "b n h w"]) -> Float[Tensor, " b"]:
    """KL(1/n ‖ A) = -log n - Σ_i log A_i / n, averaged over positions: 0 for equal shares.

    Its gradient by the logits is A - 1/n, so it still pulls where the entropy's has vanished.
    """
    n = maps.shape[1]
    return (-math.log(n) - maps.clamp(min=_TINY).log().mean(dim=1)).mean(dim=(1, 2))


def imbalance(maps: Float[Tensor, "b n h w"]) -> Float[Tensor, ""]:
    """KL(Ā ‖ 1/n) / log n of the shares Ā over batch and positions: 0 if all experts do as much, 1 if one does all.

    One-hot maps are balanced too, if every expert has its positions or its prompts.
    """
    return _divergence_to_mean(maps.mean(dim=(0, 2, 3), keepdim=True)).mean()


def routing_terms(maps: Sequence[Tensor], config: ObjectiveConfig) -> Float[Tensor, " b"]:
    """Weighted sum of the terms, each the mean over k points, for maps ``k x [b n h w]``."""
    total = maps[0].new_zeros(len(maps[0]))
    for weight, term in (
        (config.entropy, missing_entropy),
        (config.pull, divergence_from_mean),
        (config.balance, imbalance),
    ):
        if weight:
            total = total + weight * torch.stack([term(one).expand(len(one)) for one in maps]).mean(dim=0)
    return total


def objective_of(config: ObjectiveConfig, ensemble: Recorded) -> Objective:
    """The objective that ``config`` describes: the weighted error, and terms on the maps of ``ensemble``."""

    def errors(denoise: Denoise, batch: Batch, diffusion: Diffusion) -> Tensor:
        level = diffusion.at(batch.timesteps)
        weights = error_weights(config.error, diffusion.prediction_type, level, config.gamma)
        return weights * prediction_error(denoise, batch, diffusion)

    def penalised(denoise: Denoise, batch: Batch, diffusion: Diffusion) -> Tensor:
        with record_attention(ensemble, detach=False) as recorded:
            found = errors(denoise, batch, diffusion)
        return found + routing_terms([one for calls in recorded.calls for one in calls], config)

    return penalised if config.entropy or config.pull or config.balance else errors


def _divergence_to_mean(shares: Float[Tensor, "b n h w"]) -> Float[Tensor, "b h w"]:
    """KL(A ‖ 1/n) / log n = 1 - H(A) / log n; of one expert alone, 0."""
    n = shares.shape[1]
    nats = (shares * shares.clamp(min=_TINY).log()).sum(dim=1) + math.log(n)
    return nats / math.log(max(n, 2))
