"""MagicFusion inside the ensemble, against the rule written out place by place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diffusemble import EnsembleDenoiser, build_aggregator, pack_text, record_attention
from laws import EXPERTS, IMAGES, Call, call_for, denoisers

GUIDANCE = 5.0


@pytest.fixture(scope="module")
def models() -> list[torch.nn.Module]:
    return denoisers(1, 2, 3)


@pytest.fixture(scope="module")
def call() -> Call:
    return call_for("magicfusion")


@pytest.fixture(scope="module")
def alone(models: list[torch.nn.Module], call: Call) -> list[Tensor]:
    return [call.alone(model, index) for index, model in enumerate(models)]


def fused(models: Sequence[torch.nn.Module], call: Call, **options: Any) -> tuple[Tensor, Tensor]:
    """What MagicFusion predicts, and its map."""
    ensemble = EnsembleDenoiser(models, build_aggregator("magicfusion", models, guidance=GUIDANCE, **options))
    with record_attention(ensemble) as maps:
        predicted = call.of(ensemble)
    return predicted, maps[24][0]


def by_hand(
    predictions: Sequence[Tensor], k: Sequence[float] = (1, 1, 1), symmetric: bool = False, general: int | None = None
) -> np.ndarray:
    """Number of the chosen expert ``[b h w]``, by loops over places."""
    taps = {-2: 1, -1: 2, 0: 2, 1: 2, 2: 1} if symmetric else dict.fromkeys((-2, -1, 0, 1), 1)
    halves = [prediction.chunk(2) for prediction in predictions]
    chances = []
    for index, (own, prompted) in enumerate(halves):
        without = own if general is None else halves[general][0]
        response = np.abs(GUIDANCE * (prompted - without).numpy()).mean(axis=1)
        images, height, width = response.shape
        smooth = np.zeros_like(response)
        for image, row, column in np.ndindex(images, height, width):
            total = count = 0.0
            for up, first in taps.items():
                for left, second in taps.items():
                    inside = 0 <= row + up < height and 0 <= column + left < width
                    count += first * second * (inside or not symmetric)
                    total += first * second * response[image, row + up, column + left] if inside else 0
            smooth[image, row, column] = total / count
        powers = np.exp(k[index] * smooth)
        chances.append(powers / powers.sum(axis=(1, 2), keepdims=True))
    return np.argmax(chances, axis=0)


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({}, {}),
        ({"kernel": "symmetric"}, {"symmetric": True}),
        ({"temperatures": (0.5, 2.0, 3.0)}, {"k": (0.5, 2.0, 3.0)}),
        ({"unconditional": 1}, {"general": 1}),
    ],
    ids=["published", "symmetric", "temperatures", "general"],
)
def test_both_halves_are_the_chosen_experts(
    options: dict[str, Any], rule: dict[str, Any], models: list[Any], call: Call, alone: list[Tensor]
):
    predicted, maps = fused(models, call, **options)
    chosen = torch.from_numpy(by_hand(alone, **rule))
    assert chosen.unique().tolist() == [0, 1, 2]
    assert torch.equal(maps.argmax(dim=1), chosen.repeat(2, 1, 1))
    for number, prediction in enumerate(alone):
        here = (chosen == number)[:, None]
        guided = [_guided(noise)[here.expand(IMAGES, 4, -1, -1)] for noise in (predicted, prediction)]
        assert torch.equal(*guided)


def _guided(noise: Tensor) -> Tensor:
    without, prompted = noise.chunk(2)
    return without + 3.0 * (prompted - without)


def test_every_option_changes_the_choice(models: list[Any], call: Call):
    published = fused(models, call)[1]
    for options in ({"kernel": "symmetric"}, {"temperatures": (0.5, 2.0, 3.0)}, {"unconditional": 1}):
        assert not torch.equal(fused(models, call, **options)[1], published), options


@pytest.mark.parametrize(("option", "active"), [("above", [False, True]), ("below", [True, False])])
def test_saliency_decides_on_one_side_of_a_timestep(
    option: str, active: list[bool], models: list[Any], call: Call, alone: list[Tensor]
):
    always, average = fused(models, call)[0], torch.stack(alone).mean(dim=0)
    assert call.timestep.tolist() == [11, 311, 11, 311]
    for otherwise, elsewhere in (("mean", average), (2, alone[2])):
        predicted, maps = fused(models, call, **{option: 100, "otherwise": otherwise})
        expected = torch.where(torch.tensor(active * 2)[:, None, None, None], always, elsewhere)
        torch.testing.assert_close(predicted, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(maps.sum(dim=1), torch.ones_like(maps[:, 0]))
    within = fused(models, call, above=200, below=900, otherwise=0)[0]
    torch.testing.assert_close(within[1::2], always[1::2], rtol=0, atol=0)
    torch.testing.assert_close(within[::2], alone[0][::2], rtol=0, atol=0)


def test_the_time_may_be_one_number_of_the_sampler(models: list[Any], call: Call):
    ensemble = EnsembleDenoiser(models, build_aggregator("magicfusion", models, above=100, otherwise=0))
    with torch.no_grad():
        for time in (50, 50.5, torch.tensor(50), torch.tensor([50])):
            with record_attention(ensemble) as maps:
                ensemble(call.sample, time, pack_text(call.texts))
            assert maps[24][0][:, 0].min() == 1, time


def test_half_precision_makes_nearly_the_same_choice(models: list[Any], call: Call):
    maps = [fused([model.to(dtype) for model in denoisers(1, 2, 3)], _to(call, dtype))[1] for dtype in _TYPES]
    assert (maps[0] != maps[1]).float().mean() < 0.05


_TYPES = (torch.float64, torch.bfloat16)


def _to(call: Call, dtype: torch.dtype) -> Call:
    return Call(call.sample.to(dtype), call.timestep, tuple(text.to(dtype) for text in call.texts))


def test_a_batch_without_both_halves_is_refused(models: list[Any], call: Call):
    message = r"compares what guidance adds.*same latents twice.*got {} latents that are not two equal halves"
    for rows in (slice(3), slice(2)):
        part = Call(call.sample[rows], call.timestep[rows], tuple(text[rows] for text in call.texts))
        with pytest.raises(ValueError, match=message.format(len(part.sample))):
            fused(models, part)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"guidance": 1.0},
            r"^Aggregator 'magicfusion', option 'guidance': .* guidance scale above 1; got 1\. Raise the guidance, or",
        ),
        ({"temperatures": (1.0, 2.0)}, r"one temperature per expert; got \[1\.0, 2\.0\] for 3 experts\. Give 3"),
        ({"temperatures": (1.0, 2.0, -1.0)}, r"option 'temperatures\.2': Input should be greater than 0; got -1\.0\.$"),
        ({"unconditional": 3}, r"option 'unconditional' names expert 3, but the experts are 0 to 2\. Choose one of"),
        ({"otherwise": 7}, r"option 'otherwise' names expert 7, but the experts are 0 to 2\. Choose one of them"),
        ({"unconditional": "first"}, "unconditional"),
        (
            {"above": 850, "below": 600},
            r"^Aggregator 'magicfusion': .*above 850 and below 600: there is none\. Leave one of them out, or make",
        ),
        ({"kernel": "gaussian"}, "'reference' or 'symmetric'"),
        ({"points": "all"}, "points"),
        ({"temperature": 2.0}, "has no option 'temperature'. Its options are: points, guidance, temperatures, kernel"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str, models: list[Any]):
    with pytest.raises(ValueError, match=message):
        build_aggregator("magicfusion", models, **options)


def test_options_are_saved_with_it(models: list[Any], tmp_path: Any):
    from diffusemble.aggregators import load_aggregator, save_aggregator

    options = {"temperatures": (1.0, 2.0, 3.0), "unconditional": 2, "below": 600, "otherwise": 1, "guidance": 3}
    aggregator = build_aggregator("magicfusion", models, **options)
    save_aggregator(aggregator, tmp_path / "aggregator.safetensors")
    assert load_aggregator(tmp_path / "aggregator.safetensors").options == aggregator.options
    assert len(models) == EXPERTS
