"""Inception score: are the classes of single pictures sharp, and those of the whole set varied?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusemble.evaluation.metrics.sets import SetMetric
from diffusemble.evaluation.metrics.states import FeatureState

SPLITS = 10


@dataclass(frozen=True)
class SplitScore:
    """Mean over the splits and their standard deviation, which is what papers print as mean ± deviation."""

    mean: float
    deviation: float


def inception_score(logits: Tensor, splits: int = SPLITS) -> SplitScore:
    """exp E_x KL(p(y|x) ‖ p(y)), for each of ``splits`` parts in order (Salimans et al. 2016).

    It lies between 1 (all pictures have the same classes) and the number of classes (every picture is sure, all classes
    are equally frequent), and grows with the size of a part: compare only at equal numbers of pictures and splits.

    Args:
        logits: ``[n k]``.
        splits: number of parts; their sizes differ by at most one.

    Raises:
        ValueError: fewer pictures than parts.
    """
    if not 0 < splits <= len(logits):
        raise ValueError(
            f"The Inception score takes at least one picture for each split; got {len(logits)} pictures and "
            f"{splits} splits. Give more pictures or fewer splits."
        )
    logs = logits.double().log_softmax(dim=1)
    scores = torch.stack([_score(part) for part in logs.tensor_split(splits)])
    return SplitScore(float(scores.mean()), float(scores.std(correction=0)))


def _score(logs: Tensor) -> Tensor:
    marginal = logs.logsumexp(dim=0) - torch.log(torch.tensor(float(len(logs)), dtype=logs.dtype))
    return (logs.exp() * (logs - marginal)).sum(dim=1).mean().exp()


class InceptionScore(SetMetric):
    """On the 1,008 logits of the Inception graph of 2015, without their bias, in ten splits; higher is better."""

    higher_is_better = True
    needs_reference = False
    features = "inception-logits"

    def state(self) -> FeatureState:
        """An empty state."""
        return FeatureState(lambda logits: inception_score(logits).mean, needs_reference=False)
