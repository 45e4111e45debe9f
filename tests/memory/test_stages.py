"""ControlNets, image prompts, experts at output level and SDXL's refiner within a budget: the same pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxControlNetModel, SD3ControlNetModel
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from diffusemble import OutputEnsembleDenoiser
from diffusemble.adapters.install import adapter_parts
from diffusemble.config.generate import GenerateConfig
from diffusemble.config.memory import MemoryConfig
from diffusemble.drawing import install
from diffusemble.ensembles.base import Ensemble
from diffusemble.generation import Pictures, build_ensemble, generate
from diffusemble.memory.keep import choose_plan
from diffusemble.memory.live import LiveBytes
from diffusemble.memory.networks import networks_of
from diffusemble.memory.place import Placement
from diffusemble.memory.residence import Residence
from diffusemble.memory.working import measure_control, measure_working
from memory_cases import FAMILIES, a_call, a_plan, an_ensemble, predict, small_sdxl_unet
from stock import small_pipeline, small_unet
from tests.families.parts import tiny_pixart_pipeline
from tiny import (
    SDXL_UNET,
    WIDTH,
    as_expert,
    randomised,
    tiny_refiner,
    tiny_scheduler,
    tiny_sdxl_pipeline,
    tiny_sdxl_unet,
)
from tiny_ensembles import controlnet
from unet_inputs import IMAGE_WIDTH, image_prompt_weights


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Experts of SD 1.x that differ in prediction, two ControlNets, an IP-Adapter with its encoder, a picture."""
    home = tmp_path_factory.mktemp("budget")
    for seed, kind in enumerate(("epsilon", "epsilon", "v_prediction")):
        small_pipeline(seed, scheduler=tiny_scheduler(prediction_type=kind)).save_pretrained(home / f"e{seed}")
    unet = small_unet(0)
    for seed in range(2):
        controlnet(unet, 21 + seed).save_pretrained(home / f"net{seed}")
    weights = image_prompt_weights(unet)
    flat = {f"{kind}.{key}": value for kind in weights for key, value in weights[kind].items()}
    save_file(flat, home / "ip.safetensors")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    settings = CLIPVisionConfig(**sizes, image_size=8, patch_size=4, projection_dim=IMAGE_WIDTH)
    randomised(CLIPVisionModelWithProjection(settings)).save_pretrained(home / "image_encoder")
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(home / "hint.png")
    return home


def config_of(home: Path, *experts: str, **settings: Any) -> GenerateConfig:
    fixed = {"prompts": ["a fox"], "steps": 2, "guidance": 4.0, "device": "cpu", "batch": 1}
    return GenerateConfig(**{**fixed, "experts": [str(home / name) for name in experts], **settings})


def adapters(home: Path, nets: int = 2) -> dict[str, Any]:
    net = [{"model": str(home / f"net{seed}"), "image": str(home / "hint.png")} for seed in range(nets)]
    return {
        "controlnets": net,
        "image_prompts": {"weights": str(home / "ip.safetensors"), "image": str(home / "hint.png")},
    }


def same(one: Pictures, other: Pictures) -> bool:
    pictures = [[picture.image.tobytes() for picture in drawn.pictures] for drawn in (one, other)]
    sheets = [None if drawn.sheet is None else drawn.sheet.tobytes() for drawn in (one, other)]
    return pictures[0] == pictures[1] and sheets[0] == sheets[1]


def test_controlnets_and_image_prompts_draw_the_same_bits(home: Path) -> None:
    config = config_of(home, "e0", "e1", **adapters(home, 1), compare=True, steps=1)
    free = generate(config)
    memory = MemoryConfig(resident=0.5, parts="visit", controls="visit")
    drawn = generate(config.model_copy(update={"memory": memory}))
    assert drawn.memory is not None
    assert drawn.memory.plan.controls == "visit"
    assert 0.5 <= drawn.memory.plan.resident < 1
    assert 0 < drawn.memory.weights <= drawn.memory.plan.weights
    assert same(drawn, free)


@pytest.fixture(scope="module")
def controlled(home: Path) -> tuple[Ensemble, list[Any]]:
    """Two experts, and two pipelines that share two ControlNets."""
    config = config_of(home, "e0", "e1", **adapters(home))
    ensemble = build_ensemble(config)
    parts = adapter_parts(ensemble, config)
    return ensemble, [install(ensemble, config, parts) for _ in range(2)]


def call_of(nets: int) -> dict[str, Any]:
    """A picture for each ControlNet, and one to take after."""
    hints = [torch.zeros(1, 3, 16, 16)] * nets
    picture = Image.new("RGB", (8, 8))
    return {"image": hints, "ip_adapter_image": picture, "num_inference_steps": 2, "output_type": "latent"}


@pytest.mark.parametrize("controls", ["stay", "visit"])
def test_controlnets_are_counted_once_and_are_where_the_plan_says(
    controlled: tuple[Ensemble, list[Any]], controls: str
) -> None:
    ensemble, pipelines = controlled
    nets = networks_of(ensemble, pipelines).controls
    sizes = [sum(weight.nbytes for weight in net.parameters()) for net in nets]
    assert len(nets) == 2
    plan = a_plan(ensemble, pipelines, parts="visit", controls=controls, resident=0)
    away = a_plan(ensemble, pipelines, parts="visit", controls="visit", resident=0)
    assert plan.encode.weights - away.encode.weights == (sum(sizes) if controls == "stay" else 0)
    seen: list[int] = []
    with Placement(ensemble, plan, "cpu", pipelines) as placed:
        hooks = [net.register_forward_hook(lambda *_: seen.append(placed.visitors.bytes)) for net in nets]
        steps: list[int] = []
        hooks.append(ensemble.register_forward_hook(lambda *_: steps.append(placed.conveyor.brought)))
        pipelines[0](["a fox"], **call_of(2))
        assert placed.residence.peak <= plan.weights
    assert steps[1] - steps[0] == plan.travels - (0 if controls == "stay" else sum(sizes))
    for hook in hooks:
        hook.remove()
    assert seen == ([0] * 4 if controls == "stay" else sizes * 2)  # nobody else is there while one computes


def test_what_controlnets_need_is_reckoned(controlled: tuple[Ensemble, list[Any]]) -> None:
    ensemble, pipelines = controlled
    reckoned = measure_working(networks_of(ensemble, pipelines), (8, 8), batch=1, guided=True)
    with LiveBytes() as live:
        pipelines[0](["a fox"], **call_of(2))
    assert 0.8 * live.peak < reckoned.denoise < 1.6 * live.peak


@pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")  # by diffusers itself
def test_controlnets_of_transformers_are_reckoned() -> None:
    few = {"num_attention_heads": 3, "attention_head_dim": 8}
    nets = (
        FluxControlNetModel.from_transformer(FAMILIES["flux"](0), 1, 1, **few),
        SD3ControlNetModel.from_transformer(FAMILIES["sd3"](0), num_layers=1),
    )
    for net in nets:
        with torch.device("meta"):
            peak, handed_on = measure_control(net, (8, 8), 2)
        assert handed_on == len(net.controlnet_blocks) * 2 * 16 * net.inner_dim * 4 * (2 if net is nets[0] else 1)
        assert handed_on < peak


def test_a_controlnet_of_an_unknown_class_is_refused(controlled: tuple[Ensemble, list[Any]]) -> None:
    ensemble, pipelines = controlled
    networks = replace(networks_of(ensemble, pipelines), controls=(torch.nn.Linear(2, 3),))
    with pytest.raises(ValueError, match=r"ControlNetModel, .* need, and this is a Linear"):
        measure_working(networks, (8, 8), 1, True)


def test_experts_at_output_level_come_whole(home: Path) -> None:
    config = config_of(home, "e0", "e2", level="output", compare=True, steps=1)
    drawn = generate(config.model_copy(update={"memory": MemoryConfig(resident=0, parts="visit")}))
    assert drawn.memory is not None
    assert 0 < drawn.memory.weights <= drawn.memory.plan.weights
    assert same(drawn, generate(config))
    assert drawn.memory.weights < 0.7 * a_plan(build_ensemble(config)).weights


def test_experts_of_two_architectures_are_planned_and_placed() -> None:
    experts = [as_expert(small_pipeline(0), "unet"), as_expert(tiny_pixart_pipeline(), "pixart")]
    ensemble = OutputEnsembleDenoiser(experts).eval()
    pipeline = ensemble.pipeline()
    pipeline.set_progress_bar_config(disable=True)

    def latents() -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return pipeline(["a fox"], num_inference_steps=2, generator=generator, output_type="latent").images

    expected = latents()
    plan = choose_plan(ensemble, None, None, MemoryConfig(resident=0, parts="layers"))
    entered = []
    with Placement(ensemble, plan, "cpu") as placed:
        for denoiser in ensemble.denoisers:
            denoiser.register_forward_hook(lambda *_: entered.append(placed.visitors.inside))
        assert torch.equal(latents(), expected)
        assert placed.residence.peak <= plan.weights
    assert entered == [0, 1, 0, 1]
    assert placed.residence.bytes == 0


def test_eight_bits_at_output_level_are_refused() -> None:
    ensemble = OutputEnsembleDenoiser([as_expert(small_pipeline(0))])
    with pytest.raises(ValueError, match=r"memory\.storage: blocks can be kept as int8, but denoisers that run whole"):
        a_plan(ensemble, storage="int8")


@pytest.fixture(scope="module")
def two_stages(tmp_path_factory: pytest.TempPathFactory) -> GenerateConfig:
    """Two SDXL experts and a refiner."""
    home = tmp_path_factory.mktemp("stages")
    for seed in range(2):
        tiny_sdxl_pipeline(seed, unet=small_sdxl_unet(seed)).save_pretrained(home / f"base{seed}")
    refiner = tiny_refiner(0)
    added = SDXL_UNET["projection_class_embeddings_input_dim"] - SDXL_UNET["addition_time_embed_dim"]
    sizes = {"layers_per_block": 1, "transformer_layers_per_block": 1, "cross_attention_dim": WIDTH}
    unet = tiny_sdxl_unet(0, **sizes, projection_class_embeddings_input_dim=added)
    refiner.register_modules(unet=unet)
    refiner.save_pretrained(home / "refiner")
    stage = {"experts": [str(home / "refiner")], "start": 0.5}
    return config_of(home, "base0", "base1", seeds=[1, 2], steps=2, refiner=stage)


def test_two_stages_take_turns(two_stages: GenerateConfig) -> None:
    drawn = generate(two_stages.model_copy(update={"memory": MemoryConfig(resident=0.7)}))
    assert drawn.memory is not None
    assert drawn.memory.refiner is not None
    assert drawn.memory.weights <= max(drawn.memory.plan.weights, drawn.memory.refiner.weights)
    assert same(drawn, generate(two_stages))


def test_who_steps_aside_leaves_its_first_weight_and_comes_back() -> None:
    ensembles = [an_ensemble("sd", "mean", n=2) for _ in range(2)]
    call, plan = a_call(ensembles[0]), a_plan(ensembles[0], resident=0.7, storage="int8")
    residence = Residence(torch.device("cpu"))
    first = Placement(ensembles[0], plan, "cpu", residence=residence)
    expected, alone = predict(ensembles[0], call), residence.peak
    first.step_aside()
    anchor = next(ensembles[0].parameters()).nbytes
    assert residence.bytes == anchor
    second = Placement(ensembles[1], plan, "cpu", residence=residence)
    first.others, second.others = [second], [first]
    for ensemble in (ensembles[1], ensembles[0], ensembles[0], ensembles[1]):
        assert torch.equal(predict(ensemble, call), expected)
    assert residence.peak == alone + anchor
    first.release()
    second.release()
    assert residence.bytes == 0
    assert all(torch.equal(predict(ensemble, call), expected) for ensemble in ensembles)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"memory": {"parts": "stay"}}, r"memory\.parts: with a refiner the two stages take turns"),
        ({"memory": {"controls": "visit"}}, r"memory\.controls says where ControlNets are, and there are none"),
        (
            {"memory_budget": "1GB", "refiner": {"experts": ["r"], "device": "cuda:1"}},
            "a memory plan is for one device",
        ),
    ],
)
def test_what_two_stages_cannot_have_is_named(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GenerateConfig(**{"prompts": ["a fox"], "refiner": {"experts": ["r"]}, **more})
