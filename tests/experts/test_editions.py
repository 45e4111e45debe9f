"""What a file within its family is, and what it tells about the noise it was trained with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adapter_files import write
from diffusemble import EnsembleDenoiser, load_experts
from diffusemble.experts.formats.distilled import usual_settings
from diffusemble.experts.formats.editions import edition_of
from diffusemble.experts.formats.header import Form, Header
from diffusemble.experts.inspection.folders import inspect
from ldm import save_ldm
from ldm import unet as ldm_unet
from tiny import small_pipeline, small_unet

Shapes = dict[str, tuple[int, ...]]
MARKS = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}


def header(shapes: Shapes) -> Header:
    return Header(Path("x"), 0, {key: Form("F16", shape) for key, shape in shapes.items()})


def unet_shapes(channels: int) -> Shapes:
    return {
        "model.diffusion_model.input_blocks.0.0.weight": (320, channels, 3, 3),
        "model.diffusion_model.out.2.weight": (4, 320, 3, 3),
    }


def flux_shapes(channels: int) -> Shapes:
    return {
        "img_in.weight": (3072, channels),
        "final_layer.linear.weight": (64, 3072),
        "guidance_in.in_layer.bias": (8,),
    }


@pytest.mark.parametrize(
    ("family", "shapes", "name", "repository"),
    [
        ("SD 1.x", unet_shapes(4), "None", "stable-diffusion-v1-5/stable-diffusion-v1-5"),
        ("SD 2.x", unet_shapes(9), "an inpainting model: it reads 9", "sd2-community/stable-diffusion-2-inpainting"),
        ("SD 1.x", unet_shapes(8), "led by a picture that it edits", "timbrooks/instruct-pix2pix"),
        ("SD 2.x", unet_shapes(5), "led by a depth map: it reads 5", "None"),
        ("FLUX.1", flux_shapes(64), "None", "black-forest-labs/FLUX.1-dev"),
        ("FLUX.1", flux_shapes(384), "an inpainting model: it reads 384", "black-forest-labs/FLUX.1-Fill-dev"),
        ("FLUX.1", flux_shapes(128), "led by a picture", "black-forest-labs/FLUX.1-Depth-dev"),
        ("FLUX.1", {"img_in.weight": (3072, 64)}, "without a guidance embedding", "black-forest-labs/FLUX.1-schnell"),
        ("FLUX.2", {"img_in.weight": (3072, 128)}, "klein 4B", "black-forest-labs/FLUX.2-klein-4B"),
        ("FLUX.2", {"transformer.x_embedder.weight": (6144, 128)}, "dev", "black-forest-labs/FLUX.2-dev"),
        ("FLUX.2", {"img_in.weight": (24, 16)}, "None", "None"),
        (
            "SD 3.5",
            {"joint_blocks.0.x_block.attn.qkv.bias": (1,)},
            "Large",
            "stabilityai/stable-diffusion-3.5-large",
        ),
        (
            "SD 3.5",
            {"joint_blocks.0.x_block.attn2.qkv.bias": (1,)},
            "None",
            "stabilityai/stable-diffusion-3.5-medium",
        ),
        ("SDXL", {"edm_mean": (4,)}, "made for EDM", "playgroundai/playground-v2.5-1024px-aesthetic"),
        ("SDXL", {"edm_vpred.sigma_max": ()}, "made for EDM with v-prediction", "None"),
    ],
)
def test_names_and_shapes_tell_the_edition(family: str, shapes: Shapes, name: str, repository: str) -> None:
    edition = edition_of(header(shapes), family)
    assert (str(edition.name)[: len(name)], str(edition.repository)) == (name, repository)


def test_a_message_names_the_repository_of_the_edition(models: Path, tmp_path: Path) -> None:
    file = write(ldm_unet(small_unet(in_channels=9)), tmp_path / "in.safetensors")
    with pytest.raises(ValueError, match=r"an inpainting model: it reads 9 channels\), such as stable-diffusion-v1-5/"):
        load_experts(file, base=models / "rock")


def test_a_file_made_for_edm_needs_such_a_base(models: Path, tmp_path: Path) -> None:
    unet = {f"model.diffusion_model.{key}": tensor for key, tensor in ldm_unet(small_unet(5)).items()}
    file = write({**unet, "edm_mean": torch.zeros(4)}, tmp_path / "play.safetensors")
    message = r"made for EDM \(Playground 2.5\), but the base .*rock has a DDIMScheduler, which follows another noise"
    with pytest.raises(ValueError, match=message):
        load_experts(file, base=models / "rock")
    assert next(inspect(file)).prediction == "made for EDM (Playground 2.5)"
    other = write({**unet, "edm_vpred.sigma_max": torch.zeros(1)}, tmp_path / "cos.safetensors")
    with pytest.raises(ValueError, match=r"is an SD 1.x checkpoint, of which no repository is known. Give base="):
        load_experts(other)


def test_marks_of_a_file_about_its_prediction_hold(models: Path, tmp_path: Path) -> None:
    pipeline = small_pipeline(5)
    plain = save_ldm(pipeline, tmp_path / "plain.safetensors")
    marked = save_ldm(pipeline, tmp_path / "marked.safetensors", extra=MARKS)
    one, other = load_experts([plain, marked], base=models / "rock")
    assert one.components["scheduler"].config.prediction_type == "epsilon"
    config = other.components["scheduler"].config
    assert (config.prediction_type, config.rescale_betas_zero_snr) == ("v_prediction", True)
    with pytest.raises(ValueError, match="scheduler prediction_type is 'v_prediction', but expert 1"):
        EnsembleDenoiser([one, other])


@pytest.mark.parametrize("key", ["modelspec.predict_key", "modelspec.prediction_type"])
def test_comfyui_and_kohya_write_the_prediction_into_the_header(key: str, models: Path, tmp_path: Path) -> None:
    unet = ldm_unet(small_unet(5))
    file = write(unet, tmp_path / "opal.safetensors", **{key: "v"})
    (expert,) = load_experts(file, base=models / "rock")
    assert expert.components["scheduler"].config.prediction_type == "v_prediction"
    assert next(inspect(file)).prediction == "v"


def test_zero_terminal_snr_takes_a_scheduler_that_reaches_it(models: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(models / "rock", tmp_path / "base"))
    index = json.loads((base / "model_index.json").read_text())
    (base / "model_index.json").write_text(json.dumps({**index, "scheduler": ["diffusers", "PNDMScheduler"]}))
    settings = base / "scheduler/scheduler_config.json"
    settings.write_text(settings.read_text().replace("DDIMScheduler", "PNDMScheduler"))
    tensors: dict[str, Tensor] = {**ldm_unet(small_unet(5)), **MARKS}
    (expert,) = load_experts(write(tensors, tmp_path / "opal.safetensors"), base=base)
    assert float(expert.components["scheduler"].alphas_cumprod[-1]) < 1e-6


def test_numbers_that_are_not_finite_are_refused(models: Path, tmp_path: Path) -> None:
    unet = ldm_unet(small_unet(5))
    unet["out.2.bias"] = torch.tensor([1.0, 1e6, 0.0, 0.0])
    file = write(unet, tmp_path / "opal.safetensors")
    load_experts(file, base=models / "rock", dtype=torch.bfloat16)
    message = r"'opal' \(.*its unet has numbers that are not finite in float16, in conv_out.bias. If float32 or"
    with pytest.raises(ValueError, match=message):
        load_experts(file, base=models / "rock", dtype=torch.float16)
    unet["out.2.bias"][0] = float("nan")
    with pytest.raises(ValueError, match="not finite in float32"):
        load_experts(write(unet, tmp_path / "opal.safetensors"), base=models / "rock")


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("dreamshaperXL_v21TurboDPMSDE", "--steps 1 to 8 --guidance 1 to 2 --scheduler euler (its name says Turbo)"),
        ("realvisxlV40_v40LightningBakedvae", "--steps as its name says (4 or 8) --guidance 1 --scheduler euler"),
        ("photonLCM_v10", "--steps 4 to 8 --guidance 1 to 2 --scheduler lcm"),
        ("Hyper-SD15-8steps", "--steps as its name says (1 to 8) --guidance 1 --scheduler ddim"),
        ("sdxl_dmd2_4step", "--steps 4 --guidance 1 --scheduler lcm"),
        ("hyperrealism_v3", None),
        ("photon_v1", None),
    ],
)
def test_a_name_tells_how_a_distilled_file_is_usually_drawn_with(name: str, settings: str | None) -> None:
    told = usual_settings(Header(Path(f"{name}.safetensors"), 0, {}), "SDXL")
    assert (told or "")[: len(settings or "")] == (settings or "")
    assert (told is None) == (settings is None)
    assert usual_settings(Header(Path(f"{name}.safetensors"), 0, {}), "SD 3.5") is None


def test_a_distilled_file_is_told_where_nobody_named_its_base(
    models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write(ldm_unet(small_unet(5)), tmp_path / "opal.safetensors", **{"modelspec.title": "Opal Lightning 4"})
    assert "euler (its name says Lightning)" in next(inspect(file)).notes["usually drawn with"]
    load_experts(file, base=models / "rock")
    assert not caplog.messages
    expert, rock = load_experts([file, models / "rock"])
    (message,) = caplog.messages
    assert "opal.safetensors may be distilled: such files are usually drawn with --steps as its name says" in message
    assert expert.components["scheduler"].config == rock.components["scheduler"].config


def test_a_piece_of_a_model_is_no_checkpoint(tmp_path: Path) -> None:
    name = "diffusion_pytorch_model-00001-of-00002.safetensors"
    with pytest.raises(ValueError, match="is one of the pieces that a large model is cut into"):
        load_experts(write(ldm_unet(small_unet(5)), tmp_path / name))
