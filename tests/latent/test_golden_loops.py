"""The published AMDM scripts, run once on a linear toy, and the loop over pipelines give the same numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from diffusemble import Member, aggregate
from diffusemble.latent.amdm import reference_weights
from diffusemble.latent.predict import PredictPipeline
from tiny import tiny_scheduler

GOLDEN = Path(__file__).parents[1] / "golden" / "amdm"
ROOT = 16  # of the number of latent values, 4 x 8 x 8: lengths are shares of it
GUIDANCE = 7.5


def golden(name: str, folder: Path = GOLDEN) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(folder / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        notes = {key: json.loads(value) for key, value in file.metadata().items() if value.startswith("{")}
    return tensors, notes


class Toy:
    """The published run's denoiser, linear in the latents; keeps the latents that it is called with."""

    def __init__(self, gain: Tensor, bias: Tensor) -> None:
        self.gain, self.bias = gain, bias
        self.seen: list[Tensor] = []

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.seen.append(x)
        without, with_prompt = (
            ((gain * x + bias) * (0.5 + t / 2000)) for gain, bias in zip(self.gain, self.bias, strict=True)
        )
        return without + GUIDANCE * (with_prompt - without)


def check(toys: Mapping[str, Any], drawn: Any, expected: Mapping[str, Tensor]) -> None:
    for name, toy in toys.items():
        trajectory = torch.cat([*toy.seen[1:], drawn.outputs[name].images])
        assert float((trajectory - expected[name]).abs().max() / expected[name].abs().max()) < 1e-5


@pytest.mark.parametrize("setting", ["a", "b", "c", "d"])
def test_two_models(setting: str) -> None:
    data, notes = golden("amdm_loop_toy_n2")
    config = notes[f"config_{setting}"]
    data = {key[2:]: value for key, value in data.items() if key.startswith(f"{setting}.")}
    toys = {name: Toy(data[f"gain_{name}"], data[f"bias_{name}"]) for name in ("base", "aux")}
    weights, window = reference_weights(config["omega"]), (config["start"], config["end"])
    steps = config["steps"]
    calls = {name: {"latents": data[f"init_{name}"], "num_inference_steps": steps} for name in toys}
    pipelines = {name: PredictPipeline(toy, tiny_scheduler()) for name, toy in toys.items()}
    members = [
        Member("base", pipelines["base"], calls["base"], weights[0], config["pi"] / ROOT),
        Member("aux", pipelines["aux"], calls["aux"], weights[1], config["pm"] / ROOT, window, finish=True),
    ]
    options = {"compat": "reference"}
    drawn = aggregate(members, "amdm", options) if config["mixed"] else aggregate(members, "none")
    check(toys, drawn, {name: data[f"traj_{name}"] for name in toys})
    assert drawn.calls == {"base": config["unet_calls_base"], "aux": config["unet_calls_aux"]}


def test_three_models() -> None:
    data, notes = golden("amdm_loop_toy_n3")
    config, names = notes["config"], ("interact", "migc", "ip")
    toys = {name: Toy(data[f"gain_{name}"], data[f"bias_{name}"]) for name in names}
    members = [
        Member(
            name,
            PredictPipeline(toys[name], tiny_scheduler()),
            {"latents": data[f"init_{name}"], "num_inference_steps": config["steps"]},
            weight,
            config["ps"][name] / ROOT,
            None if name == "interact" else (config["start"], config["end"]),
            finish=name != "interact",
        )
        for name, weight in zip(names, reference_weights(config["w1"], config["w2"]), strict=True)
    ]
    drawn = aggregate(members, "amdm", {"compat": "reference"})
    check(toys, drawn, {name: data[f"traj_{name}"] for name in names})


def test_what_the_published_loop_runs_for_nothing_is_left_out() -> None:
    data, notes = golden("amdm_loop_toy_n2")
    config = notes["config_d"]
    weights = reference_weights(config["omega"])
    calls = [{"latents": data[f"d.init_{name}"]} for name in ("base", "aux")]
    toys = [Toy(data[f"d.gain_{name}"], data[f"d.bias_{name}"]) for name in ("base", "aux")]
    pipelines = [PredictPipeline(toy, tiny_scheduler()) for toy in toys]
    members = [
        Member("base", pipelines[0], calls[0], weights[0], config["pi"] / ROOT),
        Member("aux", pipelines[1], calls[1], weights[1], config["pm"] / ROOT, (config["start"], config["end"])),
    ]
    drawn = aggregate(members, "amdm", {"compat": "reference"}, steps=config["steps"])
    expected = data["d.traj_base"][-1:]
    assert float((drawn.images - expected).abs().max() / expected.abs().max()) < 1e-5
    assert drawn.calls == {"base": 30, "aux": 6}
    assert [len(toy.seen) for toy in toys] == [30, 6]
