"""LoRAs, ControlNets, image prompts, FreeU and guidance from a configuration."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionControlNetPipeline, StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

from diffusemble import EnsembleDenoiser, guidance_interval, load_experts
from diffusemble.adapters.install import adapted_pipeline, adapter_call
from diffusemble.config.generate import GenerateConfig
from diffusemble.generation import build_ensemble, generate
from diffusemble.samplers import build_scheduler
from diffusemble.settings import load_config
from stock import small_pipeline
from tiny import randomised
from tiny_ensembles import controlnet
from unet_inputs import IMAGE_WIDTH, image_prompt_weights

SEED = 5
SIDE = 16


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two experts, a LoRA, a ControlNet, an IP-Adapter with its encoder, a saved ensemble and pictures."""
    home = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("rock", "fern")):
        small_pipeline(seed).save_pretrained(home / name)
    whole = small_pipeline(0)
    controlnet(whole.unet).save_pretrained(home / "edges")
    weights = image_prompt_weights(whole.unet)
    save_file(
        {f"{kind}.{key}": value for kind in weights for key, value in weights[kind].items()}, home / "ip.safetensors"
    )
    _image_encoder().save_pretrained(home / "image_encoder")
    shutil.copy(home / "ip.safetensors", home / "edges")
    torch.manual_seed(3)
    whole.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "ff.net.2"], init_lora_weights=False))
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(whole.unet))
    StableDiffusionPipeline.save_lora_weights(home, unet_lora_layers=layers, weight_name="ink.safetensors")
    for number, name in enumerate(("hint.png", "like.png")):
        pixels = np.random.default_rng(number).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(home / name)
    (home / "cut.png").write_bytes((home / "hint.png").read_bytes()[:300])
    left = Image.new("L", (SIDE, SIDE))
    left.paste(255, (0, 0, SIDE // 2, SIDE))
    left.save(home / "left.png")
    EnsembleDenoiser(load_experts(_experts(home)), "mean").save_pretrained(home / "saved")
    return home


def _experts(home: Path) -> tuple[str, ...]:
    return str(home / "rock"), str(home / "fern")


def _image_encoder() -> Any:
    torch.manual_seed(4)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    settings = CLIPVisionConfig(**sizes, image_size=8, patch_size=4, projection_dim=IMAGE_WIDTH)
    return randomised(CLIPVisionModelWithProjection(settings))


def config_of(home: Path, **settings: Any) -> GenerateConfig:
    fixed = {"prompts": ["a fox"], "seeds": [SEED], "steps": 2, "guidance": 4.0, "device": "cpu"}
    return GenerateConfig(**{**fixed, "experts": _experts(home), **settings})


@pytest.fixture(scope="module")
def together(home: Path) -> EnsembleDenoiser:
    """Both experts."""
    return ensemble_of(home)


@pytest.fixture(scope="module")
def plain(home: Path) -> Image.Image:
    """What the experts draw without anything."""
    return drawn(config_of(home))


def by_hand(pipeline: Any, **call: Any) -> Image.Image:
    pipeline.scheduler = build_scheduler("ddim", pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    generator = [torch.Generator("cpu").manual_seed(SEED)]
    return pipeline(["a fox"], num_inference_steps=2, guidance_scale=4.0, generator=generator, **call).images[0]


def ensemble_of(home: Path, added: str = "") -> EnsembleDenoiser:
    return EnsembleDenoiser(load_experts([f"{one}{added}" for one in _experts(home)]))


def drawn(config: GenerateConfig) -> Image.Image:
    return generate(config).pictures[0].image


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.tobytes() == other.tobytes()


def test_loras_reach_every_expert(home: Path, plain: Image.Image) -> None:
    lora = f"{home / 'ink.safetensors'}:0.7"
    ours = drawn(config_of(home, loras=lora))
    assert same(ours, by_hand(ensemble_of(home, f"+{lora}").pipeline()))
    assert not same(ours, plain)


def test_loras_reach_every_expert_of_a_saved_ensemble(home: Path) -> None:
    lora = f"{home / 'ink.safetensors'}:0.7"
    saved = GenerateConfig(prompts=["a fox"], ensemble=str(home / "saved"), loras=[lora], device="cpu")
    ensemble = build_ensemble(saved)
    assert all(str(expert.source).endswith(f"+{lora}") for expert in ensemble.experts)
    for mine, expected in zip(ensemble.denoisers, ensemble_of(home, f"+{lora}").denoisers, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), expected.parameters(), strict=True))


def test_controlnets_act_as_given_by_hand(home: Path, plain: Image.Image, together: EnsembleDenoiser) -> None:
    one = {"model": str(home / "edges"), "image": str(home / "hint.png"), "weight": 0.8, "start": 0.4, "end": 1.0}
    hint, size = Image.open(home / "hint.png"), {"height": SIDE, "width": SIDE}
    net = controlnet(small_pipeline(0).unet)
    pipeline = together.pipeline(StableDiffusionControlNetPipeline, controlnet=net)
    shares = {"control_guidance_start": 0.4, "control_guidance_end": 1.0}
    expected = by_hand(pipeline, image=hint, controlnet_conditioning_scale=0.8, **shares, **size)
    ours = drawn(config_of(home, controlnets=one))
    assert same(ours, expected)
    assert not same(ours, plain)
    second = {**one, "image": str(home / "like.png"), "weight": 0.5, "start": 0.0, "end": 0.5}
    pipeline = together.pipeline(StableDiffusionControlNetPipeline, controlnet=[net, net])
    shares = {"control_guidance_start": [0.4, 0.0], "control_guidance_end": [1.0, 0.5]}
    weights = {"controlnet_conditioning_scale": [0.8, 0.5]}
    expected = by_hand(pipeline, image=[hint, Image.open(home / "like.png")], **weights, **shares, **size)
    assert same(drawn(config_of(home, controlnets=[one, second])), expected)


def test_image_prompts_act_as_given_by_hand(home: Path, plain: Image.Image) -> None:
    one = {"weights": str(home / "ip.safetensors"), "image": str(home / "like.png"), "weight": 0.6}
    processor = CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    pipeline = ensemble_of(home).pipeline(image_encoder=_image_encoder(), feature_extractor=processor)
    pipeline.load_ip_adapter(
        image_prompt_weights(small_pipeline(0).unet), subfolder=None, weight_name="none", image_encoder_folder=None
    )
    pipeline.set_ip_adapter_scale(0.6)
    like, size = Image.open(home / "like.png"), {"height": SIDE, "width": SIDE}
    ours = drawn(config_of(home, image_prompts=one))
    assert same(ours, by_hand(pipeline, ip_adapter_image=like, **size))
    assert not same(ours, plain)
    left = torch.zeros(1, 1, SIDE, SIDE)
    left[..., : SIDE // 2] = 1
    masked = drawn(config_of(home, image_prompts=[{**one, "mask": str(home / "left.png")}]))
    kwargs = {"ip_adapter_masks": [left]}
    assert same(masked, by_hand(pipeline, ip_adapter_image=[like], cross_attention_kwargs=kwargs, **size))
    assert not same(masked, ours)


def test_free_u_and_guidance_act_as_given_by_hand(home: Path, together: EnsembleDenoiser) -> None:
    factors = {"s1": 0.6, "s2": 0.4, "b1": 1.4, "b2": 1.6}
    pipeline = together.pipeline()
    pipeline.enable_freeu(**factors)
    with guidance_interval(pipeline, 0.0, 0.5):
        expected = by_hand(pipeline, guidance_rescale=0.7)
        assert not same(expected, by_hand(pipeline))
    assert not same(expected, by_hand(pipeline, guidance_rescale=0.7))
    pipeline.disable_freeu()
    with guidance_interval(pipeline, 0.0, 0.5):
        assert not same(expected, by_hand(pipeline, guidance_rescale=0.7))
    config = config_of(home, freeu=factors, guidance_rescale=0.7, guidance_interval=[0.0, 0.5])
    assert same(drawn(config), expected)


def test_a_picture_with_adapters_is_drawn_again_from_its_file(home: Path, tmp_path: Path) -> None:
    net = {"model": str(home / "edges"), "image": str(home / "hint.png")}
    prompt = {"weights": str(home / "ip.safetensors"), "image": str(home / "like.png")}
    lora = f"{home / 'ink.safetensors'}:0.5"
    adapters = {"loras": lora, "controlnets": net, "image_prompts": prompt, "guidance_interval": [0, 0.5]}
    run = generate(config_of(home, prompts=["a fox", "an owl"], compare=True, **adapters))
    assert run.sheet is not None  # every expert drew alone before, with the same adapters
    saved = run.save(tmp_path)
    again = generate(load_config(GenerateConfig, saved.pictures[0]))
    assert again.config == run.config
    for one, other in zip(again.pictures, run.pictures, strict=True):
        assert same(one.image, other.image)
    other = np.asarray(drawn(config_of(home, prompts=["an owl"], **adapters))).astype(int)
    assert np.abs(other - np.asarray(run.pictures[1].image).astype(int)).max() <= 1


Wrong = Callable[[Path], dict[str, Any]]


def net_of(home: Path, **changed: Any) -> dict[str, Any]:
    return {"controlnets": {"model": str(home / "edges"), "image": str(home / "hint.png"), **changed}}


def prompt_of(home: Path, **changed: Any) -> dict[str, Any]:
    return {"image_prompts": {"weights": str(home / "ip.safetensors"), "image": str(home / "like.png"), **changed}}


WRONG: dict[str, tuple[Wrong, str]] = {
    "no controlnet": (
        lambda home: net_of(home, model=str(home / "rock" / "vae")),
        r"controlnets\.model: .*vae is of class AutoencoderKL, and controlnets .* are of class ControlNetModel",
    ),
    "missing controlnet": (
        lambda home: net_of(home, model=str(home / "none")),
        r"controlnets\.model: there is no folder .*none \(looked in .*\. Give a folder or hub id with config\.json",
    ),
    "missing picture": (lambda home: net_of(home, image="none.png"), r"controlnets\.image: there is no file none\.png"),
    "no picture": (lambda home: net_of(home, image=str(home / "ip.safetensors")), "image: this is no picture: "),
    "damaged picture": (
        lambda home: net_of(home, image=str(home / "cut.png")),
        r"controlnets\.image: the picture .*cut\.png cannot be read \(.*truncated",
    ),
    "missing weights": (
        lambda home: prompt_of(home, weights=str(home / "ipp.safetensors")),
        r"weights: there is no file .*ipp\.safetensors .*\(did you mean 'ip\.safetensors'\?\)",
    ),
    "no adapter": (
        lambda home: prompt_of(home, weights=str(home / "ink.safetensors")),
        r"ink\.safetensors is no IP-Adapter: .* ip-adapter_sd15\.safetensors",
    ),
    "no encoder": (lambda home: prompt_of(home, encoder=str(home / "edges")), "edges holds no image encoder"),
    "missing encoder": (
        lambda home: prompt_of(home, encoder=str(home / "none")),
        r"image_prompts\.encoder: there is no folder .*none \(looked in ",
    ),
    "no encoder beside the weights": (
        lambda home: prompt_of(home, weights=str(home / "edges" / "ip.safetensors")),
        r"there is no folder .*edges/image_encoder, where .* is looked for\. Set image_prompts\.encoder",
    ),
    "missing mask": (lambda home: prompt_of(home, mask="none.png"), r"image_prompts\.mask: there is no file none\.png"),
    "rescaled with a controlnet": (
        lambda home: {**net_of(home), "guidance_rescale": 0.5},
        "guidance_rescale: diffusers' StableDiffusionControlNetPipeline does not know it",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_used_is_named(name: str, home: Path, together: EnsembleDenoiser) -> None:
    settings, message = WRONG[name]
    config = config_of(home, **settings(home))
    with pytest.raises(ValueError, match=message):
        adapter_call(adapted_pipeline(together, config), config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            lambda home: net_of(home, model="nets/edgs"),
            r"no folder nets/edgs .*did you mean 'edges'.*nets/edgs@main",
        ),
        (lambda home: net_of(home, image=str(home / "cut.png")), r"controlnets\.image: .*cut\.png cannot be read"),
        (
            lambda home: {"t2i_adapters": {"model": "nets/edgs", "image": str(home / "hint.png")}},
            r"t2i_adapters\.model: .*\(did you mean 'edges'\?\)",
        ),
        (lambda home: prompt_of(home, encoder="nets/image-encoder"), r"image_prompts\.encoder: there is no folder"),
        (lambda home: prompt_of(home, mask=str(home / "cut.png")), r"image_prompts\.mask: .*cut\.png cannot be read"),
        (lambda home: {"loras": "nets/edges"}, r"loras: there is no \.safetensors file nets/edges .* Give a LoRA"),
    ],
)
def test_files_are_looked_at_before_anything_is_loaded(
    settings: Wrong, message: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the hub was asked"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets/edges").mkdir(parents=True)
    with pytest.raises(ValueError, match=message):
        generate(config_of(home, experts="absent.safetensors", **settings(home)))


def test_what_reaches_no_expert_is_named(home: Path) -> None:
    with pytest.raises(ValueError, match=r"no \.safetensors file none\.safetensors"):
        generate(config_of(home, loras="none.safetensors:0.7"))
    apart = build_ensemble(config_of(home, level="output", experts=_experts(home)[:1]))
    for key, config in (("controlnets", net_of(home)), ("image_prompts", prompt_of(home))):
        with pytest.raises(ValueError, match=rf"{key} are made for one architecture, .* Use level: block"):
            adapted_pipeline(apart, config_of(home, **config))
