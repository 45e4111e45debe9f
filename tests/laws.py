"""What every aggregator must satisfy; each law takes a name in ``law_cases.CASES``.

Sizes are pairwise different (2 images, 3 experts, 7 tokens, 9 x 13 latents of 4 channels, widths 8/16/24/40), so that a
swapped axis cannot pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffusemble import EnsembleDenoiser, build_aggregator, pack_text, record_attention
from diffusemble.aggregators import load_aggregator, save_aggregator
from diffusemble.aggregators.base import Aggregator
from law_cases import CASES, GUIDED, ONLY_LAST
from tiny import randomised, tiny_unet

IMAGES, EXPERTS, TOKENS, TEXT = 2, 3, 7, 20
LATENTS = (4, 9, 13)


@dataclass(frozen=True)
class Call:
    """One denoiser call: noisy latents ``[b c h w]``, timesteps ``[b]``, a text ``[b s d]`` for every expert."""

    sample: Tensor
    timestep: Tensor
    texts: tuple[Tensor, ...]

    def of(self, ensemble: EnsembleDenoiser) -> Tensor:
        """What ``ensemble`` predicts."""
        with torch.no_grad():
            return ensemble(self.sample, self.timestep, pack_text(self.texts)).sample

    def alone(self, denoiser: nn.Module, expert: int = 0) -> Tensor:
        """What one denoiser predicts with the text of ``expert``."""
        with torch.no_grad():
            return denoiser(self.sample, self.timestep, self.texts[expert]).sample


def call_for(name: str, **sizes: Any) -> Call:
    """A call that aggregator ``name`` can take."""
    call, other = a_call(**sizes), a_call(**sizes, seed=6)
    if name not in GUIDED:
        return call
    texts = tuple(torch.cat(halves) for halves in zip(other.texts, call.texts, strict=True))
    return Call(torch.cat([call.sample] * 2), call.timestep.repeat(2), texts)


def a_call(experts: int = EXPERTS, dtype: torch.dtype = torch.float64, images: int = IMAGES, seed: int = 5) -> Call:
    """Noise, a timestep for every image and a text for every expert."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    texts = tuple(noise(images, TOKENS, TEXT) for _ in range(experts))
    return Call(noise(images, *LATENTS), torch.arange(images) * 300 + 11, texts)


def denoisers(*seeds: int, dtype: torch.dtype = torch.float64) -> list[nn.Module]:
    """One tiny U-Net per seed."""
    sizes = {"block_out_channels": (8, 16, 24, 40), "cross_attention_dim": TEXT, "norm_num_groups": 4}
    return [tiny_unet(seed, **sizes).to(dtype) for seed in seeds]


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


def copies_of_one_expert_are_that_expert(name: str) -> None:
    models, call = denoisers(1, 1, 1), call_for(name)
    call = Call(call.sample, call.timestep, call.texts[:1] * EXPERTS)
    torch.testing.assert_close(call.of(ensemble_of(name, models)), call.alone(models[0]), rtol=0, atol=1e-12)


def training_starts_from_the_block_wise_mean(name: str) -> None:
    models, call = denoisers(1, 2, 3), call_for(name)
    expected = call.of(ensemble_of("mean", models))
    assert (expected - call.alone(models[0])).abs().max() > 1e-2
    torch.testing.assert_close(call.of(ensemble_of(name, models, trained=False)), expected, rtol=0, atol=1e-12)


def a_one_hot_map_is_that_expert(name: str) -> None:
    models, call = denoisers(1, 2, 3), call_for(name)
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


def one_expert_is_itself(name: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        models, call = denoisers(1, dtype=dtype), call_for(name, experts=1, dtype=dtype)
        assert torch.equal(call.of(ensemble_of(name, models)), call.alone(models[0]))


def the_order_of_experts_does_not_matter(name: str) -> None:
    models, call, order = denoisers(1, 2, 3), call_for(name), (2, 0, 1)
    ensemble = ensemble_of(name, models)
    other = ensemble_of(name, [models[i] for i in order])
    other.aggregator.load_state_dict(reorder(ensemble.aggregator, order))
    turned = Call(call.sample, call.timestep, tuple(call.texts[i] for i in order))
    with record_attention(ensemble) as maps, record_attention(other) as turned_maps:
        torch.testing.assert_close(call.of(ensemble), turned.of(other), rtol=0, atol=1e-11)
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


def aggregating_last_is_noise_averaging(name: str) -> None:
    models, call = denoisers(1, 2, 3), call_for(name)
    ensemble = ensemble_of(name, models, trained=False, points="last")
    average = torch.stack([call.alone(model, i) for i, model in enumerate(models)]).mean(dim=0)
    torch.testing.assert_close(call.of(ensemble), average, rtol=0, atol=1e-12)
    assert (average - call.of(ensemble_of(name, models, trained=False))).abs().max() > 1e-3


def a_sample_does_not_depend_on_its_batch(name: str) -> None:
    ensemble, call = ensemble_of(name, denoisers(1, 2, 3)), call_for(name)
    together = call.of(ensemble)
    for i in range(IMAGES):
        own = slice(i, None, IMAGES)  # one row, or the two halves of one image
        alone = Call(call.sample[own], call.timestep[own], tuple(text[own] for text in call.texts))
        torch.testing.assert_close(alone.of(ensemble), together[own], rtol=0, atol=1e-11)


def maps_sum_to_one(name: str) -> None:
    ensemble = ensemble_of(name, denoisers(1, 2, 3, dtype=torch.float32))
    call = call_for(name, dtype=torch.float32)
    with record_attention(ensemble) as maps:
        call.of(ensemble)
        call.of(ensemble)
    assert (len(maps), maps.points) == (25, ensemble.points)
    there = [calls for calls in maps.calls if calls]
    assert len(there) == (1 if name in ONLY_LAST else 25)
    sides = {tuple(calls[0].shape[2:]) for calls in there}
    assert sides == ({(9, 13)} if name in ONLY_LAST else {(9, 13), (5, 7), (3, 4), (2, 2)})
    for calls in there:
        assert len(calls) == 2
        for each in calls:
            assert each.shape[:2] == (len(call.sample), EXPERTS)
            assert each.dtype == torch.float32
            assert each.min() >= 0
            torch.testing.assert_close(each.sum(dim=1), torch.ones_like(each[:, 0]))
    assert all((calls[0].std() > 1e-2) == (name != "mean") for calls in there)


def what_is_saved_is_loaded(name: str, folder: Path) -> None:
    models, call = denoisers(1, 2, 3, dtype=torch.float32), call_for(name, dtype=torch.float32)
    ensemble = ensemble_of(name, models, **({} if name in ONLY_LAST else {"points": (0, 3, 24)}))
    save_aggregator(ensemble.aggregator, folder / "aggregator.safetensors")
    loaded = load_aggregator(folder / "aggregator.safetensors")
    assert (loaded.sizes, loaded.options) == (ensemble.aggregator.sizes, ensemble.aggregator.options)
    assert torch.equal(call.of(EnsembleDenoiser(models, loaded)), call.of(ensemble))


def only_the_aggregator_learns(name: str) -> None:
    models, call = denoisers(1, 2, 3, dtype=torch.float32), call_for(name, dtype=torch.float32)
    ensemble = ensemble_of(name, models).train()
    sample = call.sample.clone().requires_grad_()
    ensemble(sample, call.timestep, pack_text(call.texts)).sample.square().mean().backward()
    assert sample.grad is not None
    assert sample.grad.any(), "gradients must pass through the frozen experts"
    assert all(parameter.grad is None for model in models for parameter in model.parameters())
    assert not any(model.training for model in models)
    for key, parameter in ensemble.aggregator.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key


def half_precision_stays_close(name: str) -> None:
    models, call = denoisers(1, 2, 3, dtype=torch.float32), call_for(name, dtype=torch.float32)
    ensemble = ensemble_of(name, models)
    expected = call.of(ensemble)
    half = call_for(name, dtype=torch.bfloat16)
    for whole in (False, True):
        (ensemble if whole else ensemble.denoisers).to(torch.bfloat16)
        result = half.of(ensemble)
        assert result.dtype == torch.bfloat16
        assert (result.float() - expected).abs().mean() < 0.1 * expected.abs().mean()


LAWS: tuple[Callable[[str], None], ...] = (
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
