"""From a trained ensemble to one merged model: the mean weight of every expert at every point is a block weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from diffusemble.aggregators.recording import AttentionMaps, record_attention
from diffusemble.config.generate import GenerateConfig
from diffusemble.drawing import draw
from diffusemble.ensembles.base import Ensemble
from diffusemble.ensembles.output_level import OutputEnsembleDenoiser
from diffusemble.merging.blockwise import BASE, slots
from diffusemble.merging.family import family_of


def export_weights(ensemble: Ensemble, config: GenerateConfig) -> tuple[Mapping[str, float], ...]:
    """Block weights of a merge that listens to every expert as the ensemble does on average.

    The slots of MBW are the aggregation points of AFA. A slot gets the mean of its point's maps over prompts, guidance
    halves, timesteps and positions; points that are not aggregated, and slots without a point (``slot_points``), the
    mean of all points.

    Args:
        ensemble: its aggregator decides.
        config: what to draw while it is recorded.

    Returns:
        A mapping from slot to weight for every expert; weights sum to one over the experts.

    Raises:
        ValueError: the experts have no slots or meet only at their output, both before anything is drawn; or the
            aggregator gave no maps.
    """
    if isinstance(ensemble, OutputEnsembleDenoiser):
        raise ValueError(
            "These experts meet only at their output, which tells nothing of blocks. Export an ensemble of the level "
            "block, or merge them in one share for all blocks (diffusemble merge --set shares=[1,2])."
        )
    places = slot_points(family_of(ensemble.denoisers[0].state_dict()), ensemble.points)
    with record_attention(ensemble) as maps:
        draw(ensemble, config)
    by_point = mean_weights(maps)
    mean = by_point.mean(dim=0)
    table = {slot: (mean if point is None else by_point[point]).tolist() for slot, point in places.items()}
    return tuple({slot: row[expert] for slot, row in table.items()} for expert in range(len(ensemble.experts)))


def slot_points(family: str, points: Sequence[str]) -> Mapping[str, int | None]:
    """The index of the aggregation point that each slot is at, in the slots' order; None for one without a point.

    Those of a U-Net lie in the same order. In FLUX.1 a point is the end of a block. What comes before the first block
    (``IN``) is first aggregated after it, and what comes after the last block (``OUT``) is in the last point, which is
    the prediction; text encoders (``BASE``, ``T5``) and blocks that this model lacks have none.

    Args:
        family: as for ``slots``.
        points: names of the aggregation points, in running order.
    """
    names = slots(family)
    if family != "flux":
        return {BASE: None, **{slot: point for point, slot in enumerate(names[1:])}}
    own = {_flux_slot(name): point for point, name in enumerate(points)}
    return {slot: {**own, "IN": 0, "OUT": len(points) - 1}.get(slot) for slot in names}


def _flux_slot(point: str) -> str:
    stack, _, index = point.partition(".")
    return f"{stack[0].upper()}{int(index):02d}"


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
    return torch.stack([one.cpu().double().mean(dim=(0, 2, 3)) for one in calls]).mean(dim=0)
