"""Files of Z-Image: in its original layout and that of diffusers, alone or with everything, and LoRAs for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adapter_files import write
from diffusemble import load_experts
from diffusemble.experts.formats.contents import contents_of
from diffusemble.experts.formats.header import Form, Header
from diffusemble.experts.inspection.folders import inspect
from diffusemble.experts.layouts.autoencoder import vae
from diffusemble.experts.layouts.flux import flux
from diffusemble.experts.layouts.z_image import qwen3, z_image
from original import assert_equal, original
from tiny_dit import tiny_flux
from tiny_z_image import tiny_z_image, tiny_z_image_pipeline
from unet_inputs import randn


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("z-image") / "base"
    tiny_z_image_pipeline(0).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_a_denoiser_alone_takes_the_rest_from_its_base(base: Path, tmp_path: Path, layout: str, prefix: str) -> None:
    model = tiny_z_image(1)
    if layout == "original":
        tensors = original(model, z_image, prefix)
        tensors[f"{prefix}norm_final.weight"] = torch.ones(24)  # which is there and never read
    else:
        tensors = {f"{prefix}{key}": tensor for key, tensor in model.state_dict().items()}
    file = write(tensors, tmp_path / "opal.safetensors")
    (report,) = inspect(file, hashed=False)
    assert (report.what, report.layout, report.prediction) == ("Z-Image checkpoint", layout, "flow")
    expert, rock = load_experts([file, base])
    assert_equal(expert.denoiser, model)
    assert expert.components["text_encoder"] is rock.components["text_encoder"]


def test_a_file_with_everything_needs_nothing_of_its_base_but_the_configuration(base: Path, tmp_path: Path) -> None:
    pipeline = tiny_z_image_pipeline(1)
    tensors = original(pipeline.transformer, z_image, "model.diffusion_model.") | original(pipeline.vae, vae, "vae.")
    tensors |= original(pipeline.text_encoder, qwen3, "text_encoders.qwen3_4b.transformer.")
    file = write(tensors, tmp_path / "opal.safetensors")
    (expert,) = load_experts(file, base=base)
    for part in ("transformer", "vae", "text_encoder"):
        own = expert.denoiser if part == "transformer" else expert.components[part]
        assert_equal(own, getattr(pipeline, part))
    assert list(expert.files) == ["weights"]


def test_a_qwen3_with_a_head_lies_there_too() -> None:
    shapes = {"model.embed_tokens.weight": (3, 2), "model.norm.weight": (2,), "lm_head.weight": (3, 2)}
    keys = [origin.key for origin in qwen3(None, shapes).values()]
    assert keys == ["model.embed_tokens.weight", "model.norm.weight", "model.embed_tokens.weight"]


def test_other_families_are_told_apart(base: Path, tmp_path: Path) -> None:
    file = write(original(tiny_flux(), flux), tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other.safetensors is a FLUX.1 checkpoint, but the base .* is Z-Image. Give"):
        load_experts(file, base=base)

    def what(*keys: str) -> str:
        return str(contents_of(Header(Path("x"), 0, {key: Form("F16", (4, 4)) for key in keys})))

    lumina = ("layers.0.adaLN_modulation.1.weight", "cap_embedder.0.weight")
    assert what(*lumina) == "a Lumina 2 checkpoint"
    assert what("control_layers.0.adaLN_modulation.0.weight") == "a ControlNet for Z-Image"


UP, DOWN = ({which: randn(*shape, seed=seed) for which in "qkv"} for seed, shape in ((1, (24, 3)), (2, (3, 24))))


def of_peft() -> dict[str, Tensor]:
    name = "diffusion_model.layers.0.attention.to_{}.lora_{}.weight"
    return {name.format(one, "A"): DOWN["q"].clone() for one in "qkv"} | {
        name.format(one, "B"): UP[one] for one in "qkv"
    }


def of_kohya() -> dict[str, Tensor]:
    """Where queries, keys and values are one module, as in the original code."""
    name = "lora_unet_layers_0_attention_qkv"
    up = torch.cat([UP[one] for one in "qkv"])
    return {f"{name}.lora_down.weight": DOWN["q"], f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(3.0)}


@pytest.mark.parametrize("build", [of_peft, of_kohya])
def test_a_lora_is_added_under_any_of_its_names(base: Path, tmp_path: Path, build: Any) -> None:
    file = write(build(), tmp_path / "style.safetensors")
    (report,) = inspect(file, hashed=False)
    assert report.what == "LoRA for Z-Image or Lumina 2"  # of this width there is neither
    (expert,) = load_experts(f"{base}+{file}:0.5")
    own, plain = expert.denoiser.layers[0].attention, tiny_z_image(0).layers[0].attention
    for one in "qkv":
        weight = getattr(plain, f"to_{one}").weight + 0.5 * UP[one] @ DOWN["q"]
        torch.testing.assert_close(getattr(own, f"to_{one}").weight, weight)
