"""Options are closed; what is wrong is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from diffusemble import EnsembleDenoiser, build_aggregator
from diffusemble.aggregators.sabw import PRESETS, SABWOptions
from diffusemble.registry import AGGREGATORS
from laws import denoisers


@pytest.fixture(scope="module")
def models() -> list[torch.nn.Module]:
    return denoisers(1, 2, dtype=torch.float32)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sabv", {}, "Unknown aggregator 'sabv'. Choose one of: sabw, mean, magicfusion"),
        (
            "sabw",
            {"wdith": 32},
            "Aggregator 'sabw' has no option 'wdith'. Its options are: points, width, heads, layers, groups, preset",
        ),
        ("mean", {"width": 32}, "Aggregator 'mean' has no option 'width'. Its options are: points, weights"),
        ("mean", {"preset": "tiny"}, "Aggregator 'mean' has no option 'preset'. Its options are: points, weights"),
        ("sabw", {"preset": "huge"}, "Unknown SABW preset 'huge'. Choose one of: paper, lite, small, tiny"),
        ("sabw", {"width": 48}, "SABW width 48 must be a multiple of its 32 norm groups"),
        ("sabw", {"width": 32, "heads": 5}, "SABW width 32 must be a multiple of its 5 heads"),
        ("sabw", {"layers": 0}, "greater than 0"),
        ("mean", {"points": (0, 3)}, r"from 0 to 24 and contain the last one.*got \[0, 3\]. Add 24, or choose 'all'"),
        ("mean", {"points": (24, 25)}, r"indices from 0 to 24 .*got \[24, 25\]"),
        ("mean", {"points": "first"}, "points"),
    ],
)
def test_wrong_options_are_named(name: str, options: dict[str, Any], message: str, models: list[torch.nn.Module]):
    with pytest.raises(ValueError, match=message):
        build_aggregator(name, models, **options)


def test_a_preset_can_be_changed_in_one_place():
    assert SABWOptions(preset="lite", layers=3).model_dump() == {
        "points": "all",
        "width": 128,
        "heads": 8,
        "layers": 3,
        "groups": 32,
    }
    assert SABWOptions().model_dump() == SABWOptions(preset="paper").model_dump()
    assert list(PRESETS) == ["paper", "lite", "small", "tiny"]


def test_options_cannot_be_changed_later(models: list[torch.nn.Module]):
    with pytest.raises(ValueError, match="frozen"):
        build_aggregator("mean", models).options.points = "last"


def test_weights_exist_only_where_features_are_aggregated(models: list[torch.nn.Module]):
    aggregator = build_aggregator("sabw", models, preset="tiny", points=(3, 24))
    assert sorted(aggregator.at) == ["24", "3"]


@pytest.mark.parametrize("name", AGGREGATORS)
def test_an_aggregator_for_other_experts_is_refused(name: str, models: list[torch.nn.Module]):
    options = {"preset": "tiny"} if name == "sabw" else {}
    aggregator = build_aggregator(name, models, **options)
    with pytest.raises(ValueError, match=r"built for Sizes\(.*experts=2\), but the experts need Sizes\(.*experts=3\)"):
        EnsembleDenoiser([*models, models[0]], aggregator)
