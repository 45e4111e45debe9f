"""What every aggregator must satisfy; each law takes a name in ``law_cases.CASES`` and a family of denoisers.

Sizes are pairwise different (2 images, 3 experts, 7 tokens, 9 x 13 latents of 4 channels, widths 8/16/24/40), so that a
swapped axis cannot pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffusemble import EnsembleDenoiser, build_aggregator, record_attention
from diffusemble.aggregators import load_aggregator, save_aggregator
from diffusemble.aggregators.base import Aggregator
from law_cases import CASES, GUIDED, ONLY_LAST
from law_families import UNET, Family
from tiny import randomised

IMAGES, EXPERTS, TOKENS = 2, 3, 7


@dataclass(frozen=True)
class Call:
    """One denoiser call: noisy latents ``[b c h w]``, timesteps ``[b]``, a text ``[b s d]`` for every expert."""

    sample: Tensor
    timestep: Tensor
    texts: tuple[Tensor, ...]
    family: Family = UNET

    def of(self, ensemble: EnsembleDenoiser) -> Tensor:
        """What ``ensemble`` predicts."""
        with torch.no_grad():
            return ensemble(**self.arguments()).sample

    def arguments(self) -> dict[str, Any]:
        """Arguments of an ensemble's ``forward``."""
        return self.family.arguments(self.sample, self.timestep, self.texts)

    def alone(self, denoiser: nn.Module, expert: int = 0) -> Tensor:
        """What one denoiser predicts with the text of ``expert``."""
        with torch.no_grad():
            return denoiser(**self.family.arguments(self.sample, self.timestep, [self.texts[expert]])).sample


def call_for(name: str, **sizes: Any) -> Call:
    """A call that aggregator ``name`` can take."""
    call, other = a_call(**sizes), a_call(**sizes, seed=6)
    if name not in GUIDED:
        return call
    texts = tuple(torch.cat(halves) for halves in zip(other.texts, call.texts, strict=True))
    return replace(call, sample=torch.cat([call.sample] * 2), timestep=call.timestep.repeat(2), texts=texts)


def a_call(
    experts: int = EXPERTS,
    dtype: torch.dtype = torch.float64,
    images: int = IMAGES,
    seed: int = 5,
    family: Family = UNET,
) -> Call:
    """Noise, a timestep for every image and a text for every expert."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    texts = tuple(noise(images, TOKENS, family.text) for _ in range(experts))
    return Call(noise(images, *family.latents), torch.arange(images) * 300 + 11, texts, family)


def denoisers(*seeds: int, dtype: torch.dtype = torch.float64, family: Family = UNET) -> list[nn.Module]:
    """One tiny denoiser per seed."""
    return [family.build(seed).to(dtype) for seed in seeds]


def ensemble_of(name: str, models: Sequence[nn.Module], trained: bool = True, **options: Any) -> EnsembleDenoiser:
    """An ensemble with the aggregator of a case; ``trained``: with random weights where training starts from zeros."""
    torch.manual_seed(0)
    row, own = CASES[name]
    aggregator = build_aggregator(row, models, **{**own, **options})
    if trained:
        disturb(aggregator)
    return EnsembleDenoiser(models, aggregator.to(models[0].dtype))


def disturb(aggregator: Aggregator) -> None:
    """Give every constant tensor random values, large enough for maps that differ from place to place."""
    zeros = [parameter for parameter in aggregator.parameters() if not parameter.any()]
    randomised(aggregator)
    with torch.no_grad():
        for parameter in zeros:
            parameter.mul_(5)


# -- laws ------------------------------------------------------------------------------------------------------------


def copies_of_one_expert_are_that_expert(name: str, family: Family = UNET) -> None:
    models, call = denoisers(1, 1, 1, family=family), call_for(name, family=family)
    call = replace(call, texts=call.texts[:1] * EXPERTS)
    torch.testing.assert_close(call.of(ensemble_of(name, models)), call.alone(models[0]), rtol=0, atol=family.exact)


def training_starts_from_the_block_wise_mean(name: str, family: Family = UNET) -> None:
    models, call = denoisers(1, 2, 3, family=family), call_for(name, family=family)
    expected = call.of(ensemble_of("mean", models))
    assert (expected - call.alone(models[0])).abs().max() > 1e-2
    torch.testing.assert_close(call.of(ensemble_of(name, models, trained=False)), expected, rtol=0, atol=family.exact)


def a_one_hot_map_is_that_expert(name: str, family: Family = UNET) -> None:
    models, call = denoisers(1, 2, 3, family=family), call_for(name, family=family)
    for chosen in range(EXPERTS):
        ensemble = ensemble_of(name, models)
        ensemble.aggregator.weigh = _one_hot(chosen)  # type: ignore[method-assign]
        assert torch.equal(call.of(ensemble), call.alone(models[chosen], chosen))


def _one_hot(chosen: int) -> Callable[..., Tensor]:
    def weigh(point: int, features: Sequence[Tensor], context: Any) -> Tensor:
        batch, _, height, width = features[0].shape
        maps = features[0].new_zeros(batch, len(features), height, width)
        maps[:, chosen] = 1
        return maps

    return weigh


def one_expert_is_itself(name: str, family: Family = UNET) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        models, call = denoisers(1, dtype=dtype, family=family), call_for(name, experts=1, dtype=dtype, family=family)
        assert torch.equal(call.of(ensemble_of(name, models)), call.alone(models[0]))


def the_order_of_experts_does_not_matter(name: str, family: Family = UNET) -> None:
    models, call, order = denoisers(1, 2, 3, family=family), call_for(name, family=family), (2, 0, 1)
    ensemble = ensemble_of(name, models)
    other = ensemble_of(name, [models[i] for i in order])
    other.aggregator.load_state_dict(reorder(ensemble.aggregator, order))
    turned = replace(call, texts=tuple(call.texts[i] for i in order))
    with record_attention(ensemble) as maps, record_attention(other) as turned_maps:
        torch.testing.assert_close(call.of(ensemble), turned.of(other), rtol=0, atol=10 * family.exact)
    for ours, theirs in zip(chain(*maps.calls), chain(*turned_maps.calls), strict=True):
        torch.testing.assert_close(ours[:, list(order)], theirs)


def reorder(aggregator: Aggregator, order: Sequence[int]) -> dict[str, Tensor]:
    """Weights for experts in another ``order``: what reads the stacked features and what writes logits is sorted."""
    weights = dict(aggregator.state_dict())
    for key, tensor in weights.items():
        if key.endswith("conv_in.weight"):
            weights[key] = torch.cat([tensor.chunk(len(order), dim=1)[i] for i in order], dim=1)
        elif key.endswith("conv_out.weight"):
            weights[key] = tensor[list(order)]
    return weights


def aggregating_last_is_noise_averaging(name: str, family: Family = UNET) -> None:
    models, call = denoisers(1, 2, 3, family=family), call_for(name, family=family)
    ensemble = ensemble_of(name, models, trained=False, points="last")
    average = torch.stack([call.alone(model, i) for i, model in enumerate(models)]).mean(dim=0)
    torch.testing.assert_close(call.of(ensemble), average, rtol=0, atol=family.exact)
    assert (average - call.of(ensemble_of(name, models, trained=False))).abs().max() > 1e-3


def a_sample_does_not_depend_on_its_batch(name: str, family: Family = UNET) -> None:
    ensemble, call = ensemble_of(name, denoisers(1, 2, 3, family=family)), call_for(name, family=family)
    together = call.of(ensemble)
    for i in range(IMAGES):
        own = slice(i, None, IMAGES)  # one row, or the two halves of one image
        alone = Call(call.sample[own], call.timestep[own], tuple(text[own] for text in call.texts), family)
        torch.testing.assert_close(alone.of(ensemble), together[own], rtol=0, atol=10 * family.exact)


def maps_sum_to_one(name: str, family: Family = UNET) -> None:
    ensemble = ensemble_of(name, denoisers(1, 2, 3, dtype=torch.float32, family=family))
    call = call_for(name, dtype=torch.float32, family=family)
    with record_attention(ensemble) as maps:
        call.of(ensemble)
        call.of(ensemble)
    assert (len(maps), maps.points) == (family.few[-1] + 1, ensemble.points)
    there = [calls for calls in maps.calls if calls]
    assert len(there) == (1 if name in ONLY_LAST else len(maps))
    sides = {tuple(calls[0].shape[2:]) for calls in there}
    assert sides == ({family.latents[1:]} if name in ONLY_LAST else family.sides)
    for calls in there:
        assert len(calls) == 2
        for each in calls:
            assert each.shape[:2] == (len(call.sample), EXPERTS)
            assert each.dtype == torch.float32
            assert each.min() >= 0
            torch.testing.assert_close(each.sum(dim=1), torch.ones_like(each[:, 0]))
    assert all((calls[0].std() > 1e-2) == (name != "mean") for calls in there)


def what_is_saved_is_loaded(name: str, folder: Path, family: Family = UNET) -> None:
    models, call = (
        denoisers(1, 2, 3, dtype=torch.float32, family=family),
        call_for(name, dtype=torch.float32, family=family),
    )
    ensemble = ensemble_of(name, models, **({} if name in ONLY_LAST else {"points": family.few}))
    save_aggregator(ensemble.aggregator, folder / "aggregator.safetensors")
    loaded = load_aggregator(folder / "aggregator.safetensors")
    assert (loaded.sizes, loaded.options) == (ensemble.aggregator.sizes, ensemble.aggregator.options)
    assert torch.equal(call.of(EnsembleDenoiser(models, loaded)), call.of(ensemble))


def only_the_aggregator_learns(name: str, family: Family = UNET) -> None:
    models, call = (
        denoisers(1, 2, 3, dtype=torch.float32, family=family),
        call_for(name, dtype=torch.float32, family=family),
    )
    ensemble = ensemble_of(name, models).train()
    sample = call.sample.clone().requires_grad_()
    ensemble(**replace(call, sample=sample).arguments()).sample.square().mean().backward()
    assert sample.grad is not None
    assert sample.grad.any(), "gradients must pass through the frozen experts"
    assert all(parameter.grad is None for model in models for parameter in model.parameters())
    assert not any(model.training for model in models)
    for key, parameter in ensemble.aggregator.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key


def half_precision_stays_close(name: str, family: Family = UNET) -> None:
    models, call = (
        denoisers(1, 2, 3, dtype=torch.float32, family=family),
        call_for(name, dtype=torch.float32, family=family),
    )
    ensemble = ensemble_of(name, models)
    expected = call.of(ensemble)
    half = call_for(name, dtype=torch.bfloat16, family=family)
    for whole in (False, True):
        (ensemble if whole else ensemble.denoisers).to(torch.bfloat16)
        result = half.of(ensemble)
        assert result.dtype == torch.bfloat16
        assert (result.float() - expected).abs().mean() < 0.1 * expected.abs().mean()


LAWS: tuple[Callable[..., None], ...] = (
    copies_of_one_expert_are_that_expert,
    training_starts_from_the_block_wise_mean,
    a_one_hot_map_is_that_expert,
    one_expert_is_itself,
    the_order_of_experts_does_not_matter,
    aggregating_last_is_noise_averaging,
    a_sample_does_not_depend_on_its_batch,
    maps_sum_to_one,
    only_the_aggregator_learns,
    half_precision_stays_close,
)
