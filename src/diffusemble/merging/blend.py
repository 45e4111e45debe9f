"""Block-weighted merging of weights in memory."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from torch import Tensor

from diffusemble.merging.blockwise import block_ratios, slot_of
from diffusemble.merging.methods import Weights, weighted_average


def merge_blocks(
    models: Sequence[Weights],
    weights: Sequence[Mapping[str, float]],
    family: str,
    only: Collection[str] | None = None,
) -> dict[str, Tensor]:
    """θ = Σ_i r_i θ_i with r = w_i / Σ_j w_j of the slot that the tensor is in (MBW for N experts).

    Args:
        models: the experts' tensors, with the same names and shapes.
        weights: one weight per slot for every expert (``blockwise.parse_weights``).
        family: ``"sd1"``, ``"sd2"``, ``"sdxl"`` or ``"flux"``.
        only: slots to merge; all by default.

    Returns:
        The merged tensors of these slots, in the number types of the first model.

    Raises:
        ValueError: as in ``weighted_average``, ``slot_of`` and ``block_ratios``; or not one set of weights per model.
    """
    if len(weights) != len(models):
        raise ValueError(
            f"Block weights are one set per model; got {len(weights)} sets for {len(models)} models. Give "
            f"{len(models)} sets."
        )
    parts = [_by_slot(model, family) for model in models]
    found = dict.fromkeys(slot for part in parts for slot in part)
    merged: dict[str, Tensor] = {}
    for slot in found if only is None else (slot for slot in found if slot in only):
        own = [part.get(slot, {}) for part in parts]
        merged |= weighted_average(own, block_ratios(weights, slot))
    return merged


def differing_slots(models: Sequence[Weights], family: str) -> frozenset[str]:
    """Slots in which at least two models differ; in all others every merge is the same."""
    first, *others = [_by_slot(model, family) for model in models]
    return frozenset(
        slot
        for slot, tensors in first.items()
        if any(not _equal(tensor, other[slot][key]) for other in others for key, tensor in tensors.items())
    )


def _equal(one: Tensor, other: Tensor) -> bool:
    return one is other or bool((one == other).all())


def _by_slot(model: Weights, family: str) -> dict[str, dict[str, Tensor]]:
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in model.items():
        parts.setdefault(slot_of(key, family), {})[key] = tensor
    return parts
