"""From a trained ensemble to one merged model: the mean weight of every expert at every point is a block weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from diffusemble.aggregators.recording import AttentionMaps, record_attention
from diffusemble.config.generate import GenerateConfig
from diffusemble.drawing import draw
from diffusemble.ensembles.base import Ensemble
from diffusemble.merging.blockwise import family_of, slots


def export_weights(ensemble: Ensemble, config: GenerateConfig) -> tuple[Mapping[str, float], ...]:
    """Block weights of a merge that listens to every expert as the ensemble does on average.

    The slots of MBW are the aggregation points of AFA. A slot gets the mean of its point's maps over prompts, guidance
    halves, timesteps and positions; ``BASE``, and points that are not aggregated, the mean of all points.

    Args:
        ensemble: its aggregator decides.
        config: what to draw while it is recorded.

    Returns:
        A mapping from slot to weight for every expert; weights sum to one over the experts.

    Raises:
        ValueError: the experts have no slots, or the aggregator gave no maps.
    """
    names = slots(family_of(ensemble.denoisers[0].state_dict()))
    with record_attention(ensemble) as maps:
        draw(ensemble, config)
    by_point = mean_weights(maps)
    table = [by_point.mean(dim=0).tolist(), *by_point.tolist()]
    return tuple(
        {slot: row[expert] for slot, row in zip(names, table, strict=True)} for expert in range(len(ensemble.experts))
    )


def mean_weights(maps: AttentionMaps) -> Tensor:
    """Mean maps ``[k n]`` in float64 of n experts at k points; points without maps get the mean of the others.

    Raises:
        ValueError: no point has maps.
    """
    means = [_mean(maps[point]) if maps[point] else None for point in range(len(maps))]
    recorded = [mean for mean in means if mean is not None]
    if not recorded:
        raise ValueError(
            "This ensemble's aggregator gave no maps, so there is nothing to export. Export an aggregator that weighs "
            "experts by maps, such as sabw or mean."
        )
    rest = torch.stack(recorded).mean(dim=0)
    return torch.stack([rest if mean is None else mean for mean in means])


def _mean(calls: Sequence[Tensor]) -> Tensor:
    return torch.stack([one.double().mean(dim=(0, 2, 3)) for one in calls]).mean(dim=0)
