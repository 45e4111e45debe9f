"""The published AMDM script, run once on small real U-Nets with InteractDiffusion and MIGC, and ours agree.

The recorded run has 7 MB and is not in the repository: ``DIFFUSEMBLE_GOLDEN`` names its folder (``-m external``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

from diffusemble import Member, aggregate
from diffusemble.controls import ControlledUNet, Interaction, InteractionCondition, Migc, MigcCondition
from diffusemble.latent.amdm import reference_weights
from diffusemble.latent.predict import PredictPipeline
from tests.latent.test_golden_loops import GUIDANCE, check, golden
from tiny import tiny_scheduler

pytestmark = pytest.mark.external


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
    data, notes = golden("amdm_loop_unets_n2", Path(os.environ["DIFFUSEMBLE_GOLDEN"]))

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
