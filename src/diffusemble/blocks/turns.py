"""Experts that take turns: before some blocks a router chooses, sample by sample, who runs from there on.

After each turn all experts continue on the chosen expert's state, its feature map, its text tokens and its skip
connections, as they do on the aggregated ones in AFA.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from diffusemble.aggregators.base import Context, weighted_sum, weighted_tokens
from diffusemble.aggregators.router import Router
from diffusemble.blocks.base import Blocks, Flow, run_span


def take_turns(experts: Sequence[Blocks], flows: Sequence[Flow], context: Context, router: Router) -> Tensor:
    """What the chosen experts predict, ``[b c h w]``.

    Without gradients for the router only the chosen experts run, on the samples that chose them. With gradients all
    experts take part, and the gates weigh what they made of each turn.

    Args:
        experts: block schedules of n denoisers.
        flows: their opened states, which differ in what each expert brings itself: time, text, masks.
        context: what the router knows beside the feature.
        router: built for these experts.
    """
    names = experts[0].names
    for start, stop in pairwise([*sorted(router.points), len(names)]):
        gates = router(start, flows[0].hidden if start else context.sample, context).gates
        turn = names[start:stop]
        if gates.requires_grad:
            ends = [run_span(blocks, flow, turn) for blocks, flow in zip(experts, flows, strict=True)]
            end = _join(ends, partial(_weighted, gates=gates))
        else:
            end = _chosen_only(experts, flows, gates.argmax(dim=1).tolist(), turn)
        flows = [replace(flow, hidden=end.hidden, skips=end.skips, tokens=end.tokens) for flow in flows]
    return flows[0].hidden


def select(value: Any, rows: Sequence[int], batch: int) -> Any:
    """The samples ``rows`` of everything in ``value`` that has one entry per sample.

    Args:
        value: tensors, alone or in records, mappings and sequences; those whose first axis is not the batch stay.
        rows: numbers of samples.
        batch: number b of all samples, at least 2.
    """
    if isinstance(value, Tensor):
        return value[list(rows)] if value.ndim and value.shape[0] == batch else value
    if is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: select(getattr(value, field.name), rows, batch) for field in fields(value)}
        return replace(value, **parts)
    if isinstance(value, dict):
        return {key: select(part, rows, batch) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(select(part, rows, batch) for part in value)
    return value


def _chosen_only(experts: Sequence[Blocks], flows: Sequence[Flow], chosen: Sequence[int], names: Sequence[str]) -> Flow:
    groups = {expert: [row for row, mine in enumerate(chosen) if mine == expert] for expert in sorted(set(chosen))}
    if len(groups) == 1:
        return run_span(experts[chosen[0]], flows[chosen[0]], names)
    ends = [run_span(experts[e], select(flows[e], rows, len(chosen)), names) for e, rows in groups.items()]
    order = torch.tensor([row for rows in groups.values() for row in rows]).argsort().to(ends[0].hidden.device)
    return _join(ends, lambda parts: torch.cat(list(parts))[order])


def _join(ends: Sequence[Flow], one: Callable[[Sequence[Tensor]], Tensor]) -> Flow:
    """The state that several ends of a turn make: ``one`` of each of their tensors."""
    tokens = [end.tokens for end in ends if end.tokens is not None]
    return replace(
        ends[0],
        hidden=one([end.hidden for end in ends]),
        skips=tuple(one(parts) for parts in zip(*(end.skips for end in ends), strict=True)),
        tokens=one(tokens) if tokens else None,
    )


def _weighted(parts: Sequence[Tensor], gates: Tensor) -> Tensor:
    if all(part is parts[0] for part in parts):  # a skip from before this turn
        return parts[0]
    if parts[0].ndim == 3:
        return weighted_tokens(parts, gates[:, :, None, None])
    return weighted_sum(parts, gates[:, :, None, None].expand(-1, -1, *parts[0].shape[2:]))
