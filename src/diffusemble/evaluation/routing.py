"""Whom the ensemble listens to: the mean weight of every expert, for each picture, timestep and point."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from diffusemble.aggregators.recording import record_attention
from diffusemble.ensembles.block_level import EnsembleDenoiser
from diffusemble.evaluation.heldout import HeldOut, Predict, losses
from diffusemble.training.objective import Diffusion


def expert_weights(
    ensemble: EnsembleDenoiser,
    predict: Predict,
    held: HeldOut,
    diffusion: Diffusion,
    times: Sequence[int],
    seed: int = 0,
) -> Float[Tensor, "n t k e"]:
    """Weights of e experts, averaged over positions, while the ensemble predicts the noise of held-out pictures.

    Args:
        ensemble: whose maps are recorded; ``predict`` must run it once per timestep.
        predict, held, diffusion, times, seed: as in ``losses``.

    Returns:
        For n pictures, t timesteps and the k aggregated points in running order; sums to one over the experts.
    """
    with record_attention(ensemble) as maps:
        losses(predict, held, diffusion, times, draws=1, seed=seed)
    recorded = [maps[point] for point in range(len(maps)) if maps[point]]
    by_point = [torch.stack([one.mean(dim=(2, 3)) for one in calls], dim=1) for calls in recorded]
    return torch.stack(by_point, dim=2)
