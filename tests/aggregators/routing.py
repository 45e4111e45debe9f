"""Routers in ensembles, and independent references for what they must give: everybody runs, then one is picked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import laws
from diffusemble import EnsembleDenoiser, build_aggregator, pack_text
from diffusemble.aggregators.base import Aggregator, AggregatorOptions, Context
from diffusemble.aggregators.router import Router
from diffusemble.registry import AGGREGATORS
from laws import Call, a_call, disturb

denoisers = cache(laws.denoisers)
"""One tiny U-Net per seed, built once: routers leave them as they are."""
ROUTERS = [name for name, entry in AGGREGATORS.items() if issubclass(entry.load(), Router)]
MIXTURES = [name for name in ROUTERS if name.startswith("mixture")]

IMAGES = 5

Gate = Callable[[Tensor], Tensor]
"""Logits ``[b n]`` to gates ``[b n]``."""


def routed(name: str, models: Sequence[nn.Module], seed: int = 0, **options: Any) -> EnsembleDenoiser:
    """An ensemble with a router whose weights are random, and whose choices differ between samples and points."""
    torch.manual_seed(seed)
    router = build_aggregator(name, models, **({"preset": "tiny"} if name in MIXTURES else {}), **options)
    disturb(router)
    ensemble = EnsembleDenoiser(models, router.to(models[0].dtype)).eval()
    centre(ensemble, a_call(len(models), models[0].dtype, IMAGES))
    return ensemble


def centre(ensemble: EnsembleDenoiser, call: Call) -> None:
    """Make the logits of every point zero on average over ``call``: random weights alone prefer one expert."""

    def remove_mean(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        mean = inputs[0].mean(dim=(0, 2, 3))
        weight = layer.get_parameter("weight")
        with torch.no_grad():
            weight.sub_((weight[..., 0, 0] @ mean).outer(mean)[..., None, None] / mean.square().sum())

    layers = [layer for name, layer in ensemble.aggregator.named_modules() if name.endswith("conv_out")]
    handles = [layer.register_forward_pre_hook(remove_mean) for layer in layers]
    call.of(ensemble)
    for handle in handles:
        handle.remove()


def hard(logits: Tensor) -> Tensor:
    """The largest logit's gate is 1."""
    return nn.functional.one_hot(logits.argmax(dim=1), logits.shape[1]).to(logits.dtype)


def straight_through(temperature: float) -> Gate:
    """A Gumbel softmax (Jang et al. 2017, eq. 2), hard forwards and soft backwards."""

    def gate(logits: Tensor) -> Tensor:
        noise = -torch.empty_like(logits).exponential_().log()
        soft = ((logits + noise) / temperature).softmax(dim=1)
        return hard(soft) - soft.detach() + soft

    return gate


class Picking(Aggregator):
    """All experts run every block; the router's gates weigh what they made. Keeps the feature that enters a block."""

    def __init__(self, router: Any, gate: Gate) -> None:
        super().__init__(router.sizes, AggregatorOptions())
        self.router, self.gate = router, gate

    def weigh(self, point: int, features: Sequence[Tensor], context: Context) -> Tensor:
        if point in self.router.points:
            entering = context.sample if point == 0 else self.current
            self.gates = self.gate(self.router.at[str(point)](entering, context).mean(dim=(2, 3)))
        return self.gates[:, :, None, None].expand(-1, -1, *features[0].shape[2:])

    def forward(self, point: int, features: Sequence[Tensor], context: Context) -> Any:
        mixed = super().forward(point, features, context)
        self.current = mixed.feature
        return mixed


def picked(ensemble: EnsembleDenoiser, call: Call, gate: Gate = hard) -> Tensor:
    """What ``ensemble`` must predict."""
    everybody = EnsembleDenoiser(list(ensemble.denoisers), Picking(ensemble.aggregator, gate))
    return everybody(call.sample, call.timestep, pack_text(call.texts)).sample


def picked_whole(ensemble: EnsembleDenoiser, call: Call, gate: Gate = hard) -> Tensor:
    """The same for a router that chooses once a step."""
    router: Any = ensemble.aggregator
    context = Context(torch.stack(call.texts).mean(dim=0), mean_time(ensemble, call), call.sample, call.timestep)
    gates = gate(router.at["0"](call.sample, context).mean(dim=(2, 3)))
    alone = [
        model(call.sample, call.timestep, text).sample
        for model, text in zip(ensemble.denoisers, call.texts, strict=True)
    ]
    return sum(gates[:, index, None, None, None] * one for index, one in enumerate(alone))


def mean_time(ensemble: EnsembleDenoiser, call: Call) -> Tensor:
    """Mean over the experts of their time embeddings ``[b e]``."""
    found = [model.time_embedding(model.time_proj(call.timestep).to(call.sample.dtype)) for model in ensemble.denoisers]
    return torch.stack(found).mean(dim=0)


class Counter:
    """How many samples went through the first, middle and last layer of every denoiser."""

    def __init__(self, ensemble: EnsembleDenoiser) -> None:
        self.samples = [[0, 0, 0] for _ in ensemble.denoisers]
        self.handles = [
            layer.register_forward_hook(self._count(expert, which))
            for expert, model in enumerate(ensemble.denoisers)
            for which, layer in enumerate((model.conv_in, model.mid_block, model.conv_out))
        ]

    def _count(self, expert: int, which: int) -> Callable[..., None]:
        def count(_: nn.Module, inputs: Any, output: Tensor) -> None:
            self.samples[expert][which] += len(output)

        return count

    def __enter__(self) -> Counter:
        return self

    def __exit__(self, *_: Any) -> None:
        for handle in self.handles:
            handle.remove()
