"""Options are closed; what is wrong is named."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from diffusemble import EnsembleDenoiser, build_aggregator
from diffusemble.aggregators.base import Context
from diffusemble.aggregators.sabw import SABWOptions
from diffusemble.aggregators.trunk import PRESETS
from diffusemble.registry import AGGREGATORS
from laws import a_call, denoisers, ensemble_of
from tiny import tiny_unet


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
            "Aggregator 'sabw' has no option 'wdith'. Its options are: points, width, heads, layers, groups, time, "
            "text, pool, pool_from, spatial, preset",
        ),
        ("mean", {"width": 32}, "Aggregator 'mean' has no option 'width'. Its options are: points, weights"),
        ("mean", {"preset": "tiny"}, "Aggregator 'mean' has no option 'preset'. Its options are: points, weights"),
        (
            "sabw",
            {"preset": "huge"},
            "Unknown SABW preset 'huge'. Choose one of: paper, lite, lite-pooled, small, tiny",
        ),
        ("sabw", {"width": 48}, "SABW width 48 must be a multiple of its 32 norm groups"),
        ("sabw", {"width": 32, "heads": 5}, "SABW width 32 must be a multiple of its 5 heads"),
        ("sabw", {"layers": 0}, "greater than 0"),
        ("mean", {"points": (0, 3)}, r"from 0 to 24 and contain the last one.*got \[0, 3\]. Add 24, or choose 'all'"),
        ("mean", {"points": (24, 25)}, r"indices from 0 to 24 .*got \[24, 25\]"),
        (
            "mean",
            {"points": "midd"},
            r"no point 'midd' \(did you mean 'mid'\?\). .*or choose 'all', 'last' or 'levels'",
        ),
        ("sabw", {"pool": 0}, "greater than 0"),
        (
            "mixture-blocks",
            {"points": (3, 24)},
            r"contain the first one, because somebody must .*Add 0, or choose 'all'",
        ),
        ("mixture-blocks", {"points": "last"}, "points"),
        ("mixture-denoisers", {"points": "all"}, "Aggregator 'mixture-denoisers' has no option 'points'"),
        ("mixture-denoisers", {"temperature": 0}, "greater than 0"),
        ("mixture-denoisers", {"route_guidance": "both"}, "'own' or 'shared'"),
        ("timestep-switch", {"thresholds": (200,), "times": 1}, "Its options are: thresholds"),
        (
            "timestep-switch",
            {"thresholds": (700, 200)},
            r"2 experts switch at 1 timesteps; got 2 thresholds: \[700.0, 20",
        ),
        (
            "timestep-switch",
            {"thresholds": (200, 700)},
            r"thresholds must fall, .*got \[200.0, 700.0\]. Sort them from",
        ),
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
        "time": True,
        "text": True,
        "pool": 1,
        "pool_from": 32,
        "spatial": True,
    }
    assert SABWOptions().model_dump() == SABWOptions(preset="paper").model_dump()
    assert list(PRESETS) == ["paper", "lite", "lite-pooled", "small", "tiny"]


def test_options_cannot_be_changed_later(models: list[torch.nn.Module]):
    with pytest.raises(ValueError, match="frozen"):
        build_aggregator("mean", models).options.points = "last"


def test_weights_exist_only_where_features_are_aggregated(models: list[torch.nn.Module]):
    aggregator = build_aggregator("sabw", models, preset="tiny", points=(3, 24))
    assert sorted(aggregator.at) == ["24", "3"]


@pytest.mark.parametrize("name", AGGREGATORS)
def test_an_aggregator_for_other_experts_is_refused(name: str, models: list[torch.nn.Module]):
    options = {"preset": "tiny"} if AGGREGATORS[name].load().presets else {}
    aggregator = build_aggregator(name, models, **options)
    with pytest.raises(ValueError, match=r"built for Sizes\(.*experts=2, .*but the experts need Sizes\(.*experts=3, "):
        EnsembleDenoiser([*models, models[0]], aggregator)


def test_only_a_router_must_know_the_channels_of_the_latents(models: list[torch.nn.Module]):
    inpainting = [tiny_unet(1, in_channels=9), tiny_unet(2, in_channels=9)]
    plain = [tiny_unet(1), tiny_unet(2)]
    EnsembleDenoiser(inpainting, build_aggregator("sabw", plain, preset="tiny"))
    with pytest.raises(ValueError, match=r"built for Sizes\(.*latents=4\), but the experts need Sizes\(.*latents=9\)"):
        EnsembleDenoiser(inpainting, build_aggregator("mixture-denoisers", plain, preset="tiny"))


@pytest.mark.parametrize(
    ("points", "indices"),
    [
        ("last", {24}),
        ("levels", {3, 6, 9, 11, 12, 15, 18, 21, 24}),
        (("mid", "up.3.layer2"), {12, 24}),
        (["conv_in", 9, "up.3.layer2"], {0, 9, 24}),
        ("up.3.layer2", {24}),
        (24, {24}),
    ],
)
def test_points_have_names(points: Any, indices: set[int], models: list[torch.nn.Module]):
    assert build_aggregator("mean", models, points=points).points == indices


def test_a_mixture_may_choose_once_a_level(models: list[torch.nn.Module]):
    built = build_aggregator("mixture-blocks", models, preset="tiny", points="levels")
    assert built.points == {0, 4, 7, 10, 12, 13, 16, 19, 22}
    assert sorted(built.at, key=int) == ["0", "4", "7", "10", "12", "13", "16", "19", "22"]


@pytest.mark.parametrize("switched_off", ["time", "text"])
def test_what_is_not_seen_has_no_weights(switched_off: str, models: list[torch.nn.Module]):
    whole, less = (build_aggregator("sabw", models, preset="tiny", **{switched_off: on}) for on in (True, False))
    gone = {key.split(".", 2)[2] for key in whole.state_dict().keys() - less.state_dict().keys()}
    assert gone
    assert all(key.startswith({"time": "res_block.time_emb_proj", "text": "transformer"}[switched_off]) for key in gone)
    assert not less.state_dict().keys() - whole.state_dict().keys()


def test_what_is_not_seen_does_not_matter():
    models, call = denoisers(1, 2, 3), a_call()
    features = [torch.randn(2, 8, 9, 13, dtype=torch.float64) for _ in range(3)]
    context = Context(call.texts[0], torch.randn(2, 32, dtype=torch.float64), call.sample, call.timestep)
    for option, other in (
        ("text", replace(context, text=call.texts[1])),
        ("time", replace(context, time=context.time + 1)),
    ):
        for seen in (True, False):
            aggregator = ensemble_of("sabw", models, **{option: seen}).aggregator
            same = torch.equal(aggregator.weigh(0, features, context), aggregator.weigh(0, features, other))
            assert same != seen


def test_without_space_every_expert_has_one_weight():
    features = [torch.randn(2, 8, 9, 13, dtype=torch.float64) for _ in range(3)]
    call = a_call()
    context = Context(call.texts[0], torch.randn(2, 32, dtype=torch.float64), call.sample, call.timestep)
    maps, spatial = (
        ensemble_of(name, denoisers(1, 2, 3)).aggregator.weigh(0, features, context)
        for name in ("sabw without space", "sabw")
    )
    torch.testing.assert_close(maps, maps[:, :, :1, :1].expand_as(maps), rtol=1e-12, atol=0)
    # A mean of logits is, up to a factor common to all experts, a geometric mean of weights.
    torch.testing.assert_close(maps[..., 0, 0], spatial.log().mean(dim=(2, 3)).softmax(dim=1))
