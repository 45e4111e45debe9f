"""Several noise predictions of one image become one: formulas on tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def mean(predictions: Sequence[Tensor], weights: Sequence[float] | None = None) -> Float[Tensor, "b c h w"]:
    """ε = Σ_i w_i ε_i / Σ_i w_i, the noise average of models that share one latent space.

    With equal weights, an ensemble whose aggregator is ``mean`` at the last point alone predicts the same.

    Args:
        predictions: n predictions ``[b c h w]``.
        weights: one number per prediction; equal by default.

    Raises:
        ValueError: no predictions, different shapes, or weights that do not fit or sum to zero.
    """
    shapes = [tuple(prediction.shape) for prediction in predictions]
    if len(set(shapes)) != 1:
        raise ValueError(
            f"A noise average needs one or more predictions of one shape [b c h w]; got {shapes}. Use models that "
            f"share one latent space, at one image size."
        )
    shares = [1.0] * len(shapes) if weights is None else list(weights)
    if len(shares) != len(shapes) or sum(shares) == 0:
        raise ValueError(
            f"A noise average takes one weight per prediction, not summing to zero; got {shares} for {len(shapes)} "
            f"predictions. Give {len(shapes)} positive weights."
        )
    total = sum(shares)
    return torch.stack([p * (w / total) for p, w in zip(predictions, shares, strict=True)]).sum(dim=0)
