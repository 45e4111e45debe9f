"""InteractDiffusion against data of the published code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import GatedSelfAttentionDense
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from diffusemble.controls import ControlledUNet, Interaction, InteractionCondition
from diffusemble.controls.boxes import between, fourier
from diffusemble.controls.gated import gated
from diffusemble.controls.interaction import InteractionProjection

GOLDEN = Path(__file__).parents[1] / "golden" / "amdm"
PHRASES = ("subject_positive_embeddings", "action_positive_embeddings", "object_positive_embeddings")


def parts(file: str) -> dict[str, dict[str, Tensor]]:
    """Tensors of a golden file by the first word of their names: in, out, weight."""
    found: dict[str, dict[str, Tensor]] = {"in": {}, "out": {}, "weight": {}}
    for key, tensor in load_file(GOLDEN / f"{file}.safetensors").items():
        kind, name = key.split(".", 1)
        found[kind][name] = tensor if kind == "in" else tensor.float()
    return found


def close(result: Tensor, golden: Tensor) -> None:
    assert (result - golden).abs().max() <= 1e-5 * golden.abs().max()


def test_tokens():
    golden = parts("id_interaction_projection")
    given, out = golden["in"], golden["out"]
    net = InteractionProjection(text=16, token=12, hidden=512, slots=30)
    net.load_state_dict(golden["weight"])
    with torch.no_grad():
        close(net(given["subject_boxes"], given["object_boxes"], given["masks"], *map(given.get, PHRASES)), out["objs"])
    close(between(given["subject_boxes"], given["object_boxes"]), out["action_boxes"])
    close(fourier(given["subject_boxes"]), out["fourier_subject"])


def test_a_gated_layer():
    golden = parts("id_gated_self_attention")
    layer = GatedSelfAttentionDense(query_dim=32, context_dim=12, n_heads=8, d_head=4)
    layer.load_state_dict(golden["weight"])
    with torch.no_grad():
        close(gated(layer, golden["in"]["x"], golden["in"]["objs"]), golden["out"]["y"])


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, dict[str, dict[str, Tensor]]]:
    """The tiny published U-Net as a plain one, its control, and the data."""
    golden = parts("id_unet_tiny")
    with safe_open(str(GOLDEN / "id_unet_tiny.safetensors"), framework="pt") as opened:
        config = json.loads(opened.metadata()["config"])
    unet = UNet2DConditionModel(**{**config, "attention_type": "default"}).eval()
    own = golden["weight"].keys() - unet.state_dict().keys()
    unet.load_state_dict({key: tensor for key, tensor in golden["weight"].items() if key not in own})
    control = Interaction.from_unet(unet)
    control.load_state_dict({key: golden["weight"][key] for key in own})
    return unet, control.eval(), golden


def condition(given: dict[str, Tensor], **settings: float) -> InteractionCondition:
    count = int(given["masks"][1].sum())
    names = ("subject_boxes", "object_boxes", *PHRASES)
    return InteractionCondition(*(given[name][1, :count] for name in names), **settings)


@pytest.mark.parametrize(("settings", "out"), [({}, "eps"), ({"until": 0.0}, "eps_fuser_disabled")])
def test_a_whole_network(published: tuple[Any, Any, Any], settings: dict[str, float], out: str):
    unet, control, golden = published
    given = golden["in"]
    rows = [None, condition(given, **settings)]  # the data's rows have different latents, as no pipeline's have
    with torch.no_grad():
        result = ControlledUNet(unet, [control], guided=False)(
            given["sample"],
            given["timestep"],
            given["encoder_hidden_states"],
            cross_attention_kwargs={"interaction": rows},
        ).sample
    close(result, golden["out"][out])
