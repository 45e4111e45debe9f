"""The published AMDM scripts, run once on a linear toy, and the loop over pipelines give the same numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffusemble import Member, aggregate
from diffusemble.controls import ControlledUNet, Interaction, InteractionCondition, Migc, MigcCondition
from diffusemble.latent.amdm import reference_weights
from diffusemble.latent.predict import PredictPipeline
from tiny import tiny_scheduler

GOLDEN = Path(__file__).parents[1] / "golden" / "amdm"
ROOT = 16  # of the number of latent values, 4 x 8 x 8: lengths are shares of it
GUIDANCE = 7.5


def golden(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
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


class Drawn:
    """A published run's model with its control: guided predictions, and the latents that it is called with."""

    def __init__(self, unet: ControlledUNet, text: Tensor, condition: Callable[[int], Mapping[str, Any]]) -> None:
        self.unet, self.text, self.condition = unet, text, condition
        self.seen: list[Tensor] = []

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        own = self.condition(len(self.seen))
        self.seen.append(x)
        without, with_prompt = self.unet(torch.cat([x, x]), t, self.text, cross_attention_kwargs=own).sample.chunk(2)
        return without + GUIDANCE * (with_prompt - without)


@pytest.fixture(scope="module")
def unets(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], dict[str, Any], Any, Any]:
    """Data of the run with real U-Nets, and both of them under their controls."""
    data, notes = golden("amdm_loop_unets_n2")

    def part(name: str) -> dict[str, Tensor]:
        return {key[len(name) + 1 :]: value for key, value in data.items() if key.startswith(f"{name}.")}

    gated, plain = (
        {key: value.float() for key, value in part(f"unet_{name}").items()} for name in ("interact", "migc")
    )
    made = [UNet2DConditionModel(**notes["unet_config"]).eval() for _ in range(2)]
    for unet, weights in zip(made, (gated, plain), strict=True):
        unet.load_state_dict({key: weights.pop(key) for key in unet.state_dict()})
    interaction = Interaction.from_unet(made[0], text=768)
    interaction.load_state_dict(gated)  # what the plain U-Net left over
    assert not plain
    file = tmp_path_factory.mktemp("migc") / "migc.safetensors"
    save_file({key: value.float() for key, value in part("migc_ckpt").items()}, file)
    return (
        data,
        notes,
        ControlledUNet(made[0], [interaction.eval()]),
        ControlledUNet(made[1], [Migc.from_pretrained(file)]),
    )


@pytest.mark.parametrize("name", ["mixed", "plain", "mixed_naive"])
def test_interactions_and_instances(name: str, unets: tuple[dict[str, Tensor], dict[str, Any], Any, Any]) -> None:
    data, notes, interact, migc = unets
    config = {**notes["mixed"], **(notes["mixed_naive"] if name == "mixed_naive" else {})}
    steps, on, fused = config["num_inference_steps"], config["MIGCsteps"], config.get("NaiveFuserSteps", -1)
    subject, thing, action = data["interact.phrase_embeds"].unsqueeze(1)
    boxes = (data[f"interact.{role}_box"][None] for role in ("subject", "object"))
    until = config.get("interactdiffusion_scheduled_sampling_beta", 1.0)
    relation = InteractionCondition(*boxes, subject, action, thing, until=until)

    def instances(step: int) -> Mapping[str, Any]:
        # The published layers shuffle their slots in every step: perm[place] is the instance there.
        slots = data[f"{name}.perms"][2 * min(step, on) :][:2].argsort(dim=1)[:, :2]
        text, pooled = data["migc.prompt_embeds"][1:], data["migc.embeds_pooler"][1:, 0]
        shares = ((on + 1) / steps, (fused + 1) / steps)
        return {"migc": MigcCondition(text, pooled, data["migc.bboxes"], 128, 128, *shares, slots=slots)}

    texts = {
        who: torch.cat([data[f"{who}.negative_embeds"], data[f"{who}.prompt_embeds"][:1]])
        for who in ("interact", "migc")
    }
    models = {
        "interact": Drawn(interact, texts["interact"], lambda step: {"interaction": relation}),
        "migc": Drawn(migc, texts["migc"], instances),
    }
    window = (config["optim_start"], config["optim_end"])
    given = zip(models.items(), reference_weights(config["omega"]), (None, window), strict=True)
    members = [
        Member(
            who,
            PredictPipeline(model, tiny_scheduler()),
            {"latents": data[f"init.{who}"]},
            weight,
            config[f"{who}_p"] / 32,  # 4 x 16 x 16 latents
            own,
            finish=own is not None,
        )
        for (who, model), weight, own in given
    ]
    way = ("none", None) if name == "plain" else ("amdm", {"compat": "reference"})
    drawn = aggregate(members, *way, steps=steps)
    check(models, drawn, {who: data[f"{name}.traj_{who}"] for who in models})
    assert drawn.calls == {"interact": 8, "migc": 8}
