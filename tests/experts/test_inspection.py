"""What files and folders are, without loading them; wrong files are told, not raised."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from adapter_files import kohya, shapes_of, write
from diffusemble import EnsembleDenoiser, load_experts
from diffusemble.app.cli import app
from diffusemble.experts.formats.contents import contents_of
from diffusemble.experts.formats.header import Header, read_header
from diffusemble.experts.inspection.adapters import words
from diffusemble.experts.inspection.folders import inspect
from diffusemble.experts.inspection.report import Report
from diffusemble.experts.layouts.flux import flux
from diffusemble.experts.layouts.sd3 import sd3
from ldm import REFINER, SD1, SD2, SDXL, save_ldm
from ldm import vae as ldm_vae
from original import original
from tiny import tiny_pipeline, tiny_refiner, tiny_sdxl_pipeline, tiny_unet, tiny_vae
from tiny_dit import tiny_flux, tiny_sd3


def only(path: Path, hashed: bool = False) -> Report:
    (report,) = inspect(path, hashed)
    return report


def with_layout(layout: Any, pipeline: Callable[[], Any]) -> Callable[[Path], Path]:
    return lambda file: save_ldm(pipeline(), file, layout)


def sd2() -> Any:
    return tiny_pipeline(3, unet=tiny_unet(3, use_linear_projection=True))


FILES: dict[str, tuple[Callable[[Path], Path], str, tuple[str, ...]]] = {
    "sd1": (with_layout(SD1, tiny_pipeline), "SD 1.x checkpoint", ("unet", "vae", "text_encoder", "rest")),
    "sd2": (with_layout(SD2, sd2), "SD 2.x checkpoint", ("unet", "vae", "text_encoder", "rest")),
    "sdxl": (
        with_layout(SDXL, tiny_sdxl_pipeline),
        "SDXL checkpoint",
        ("unet", "vae", "text_encoder", "text_encoder_2", "rest"),
    ),
    "refiner": (
        with_layout(REFINER, tiny_refiner),
        "SDXL refiner checkpoint",
        ("unet", "vae", "text_encoder_2", "rest"),
    ),
    "flux": (lambda file: write(original(tiny_flux(), flux), file), "FLUX.1 checkpoint", ("transformer",)),
    "comfy": (
        lambda file: write(original(tiny_flux(), flux, "model.diffusion_model."), file),
        "FLUX.1 checkpoint",
        ("transformer",),
    ),
    "sd35": (lambda file: write(original(tiny_sd3(), sd3), file), "SD 3.5 checkpoint", ("transformer",)),
    "sd3": (
        lambda file: write(original(tiny_sd3(qk_norm=None, dual_attention_layers=()), sd3), file),
        "SD 3 checkpoint",
        ("transformer",),
    ),
    "diffusers": (lambda file: write(tiny_flux().state_dict(), file), "FLUX.1 checkpoint", ("transformer",)),
    "unet": (lambda file: write(tiny_unet().state_dict(), file), "SD 1.x checkpoint", ("unet",)),
    "vae": (lambda file: write(ldm_vae(tiny_vae()), file), "VAE", ("VAE",)),
    "lora": (
        lambda file: write(kohya(shapes_of(tiny_unet(), ["to_q"])), file),
        "LoRA",
        ("LoRA",),
    ),
    "word": (lambda file: write({"emb_params": torch.ones(3, 768)}, file), "textual inversion for SD 1.x", None),
}


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_is_recognised(name: str, tmp_path: Path) -> None:
    build, what, parts = FILES[name]
    file = build(tmp_path / "opal.safetensors")
    report = only(file)
    assert (report.what, report.problem) == (what, None)
    assert parts is None or tuple(part.name for part in report.parts) == parts
    assert report.parameters == sum(form.count for form in read_header(file).forms.values())
    assert report.size == file.stat().st_size
    assert report.sha256 is None


@pytest.mark.parametrize("seed", range(5))
def test_no_file_makes_it_fail(seed: int, tmp_path: Path) -> None:
    """Names of every family in one heap, with shapes that no model has."""
    generator = random.Random(seed)
    names = [
        *("model.diffusion_model.", "unet.", "", "lora_unet_", "first_stage_model.", "text_encoders.t5xxl."),
        *("double_blocks.0.", "input_blocks.0.0.", "output_blocks.1.", "label_emb.", "joint_blocks.0.", "attn2.to_k."),
        *(
            "lora_up.",
            "hada_w1_a",
            "alpha",
            "emb_params",
            "clip_l",
            "weight",
            "bias",
            "img_in.weight",
            "proj_in.weight",
        ),
        *("dora_scale", "scale_weight", "comfy_quant", "position_ids", "conv_in.weight", "up_blocks.", "x.absmax"),
    ]
    kinds = [torch.float32, torch.float16, torch.int64, torch.uint8, torch.float8_e4m3fn]
    for number in range(40):
        keys = {
            "".join(generator.choices(names, k=generator.randint(1, 4))) or "a" for _ in range(generator.randint(1, 9))
        }
        shapes = {key: generator.choices([0, 1, 2, 3], k=generator.randint(0, 4)) for key in keys}
        tensors = {key: torch.zeros(shape).to(generator.choice(kinds)) for key, shape in shapes.items()}
        marks = generator.sample(["ss_tag_frequency", "diffusemble.merge", "modelspec.prediction_type"], 2)
        report = only(write(tensors, tmp_path / f"{number}.safetensors", **dict.fromkeys(marks, "{")))
        assert report.what or "fit nothing" in str(report.problem) or "is quantised" in str(report.problem), (
            report.problem
        )
        assert report.parameters == sum(tensor.numel() for tensor in tensors.values())


def header(**shapes: tuple[int, ...]) -> Header:
    from diffusemble.experts.formats.header import Form

    return Header(Path("x"), 0, {key: Form("F16", shape) for key, shape in shapes.items()})


@pytest.mark.parametrize(
    ("shapes", "what"),
    [
        ({"lora_unet_x_attn2_to_k.lora_down.weight": (8, 768)}, "a LoRA for SD 1.x"),
        ({"lora_unet_x_attn2_to_k.lora_down.weight": (8, 1024)}, "a LoRA for SD 2.x"),
        ({"unet.x.attn2.to_k.lora_A.weight": (8, 2048)}, "a LoRA for SDXL"),
        ({"lora_unet_input_blocks_4_1_x.hada_w1_a": (8, 8)}, "a LyCORIS for SDXL"),
        ({"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": (8, 8)}, "a LoRA for FLUX.1"),
        ({"lora_unet_joint_blocks_0_x_block_attn_qkv.lokr_w1": (8, 8)}, "a LyCORIS for SD 3 or 3.5"),
        ({"clip_l": (2, 768), "clip_g": (2, 1280)}, "a textual inversion for SDXL"),
        ({"control_model.input_blocks.0.0.weight": (8, 8)}, "a ControlNet"),
        ({"controlnet_cond_embedding.conv_in.weight": (8, 8), "add_embedding.x": (1,)}, "a ControlNet for SDXL"),
        ({"image_proj.proj.weight": (8, 8)}, "an IP-Adapter"),
        ({"text_model.encoder.layers.0.mlp.fc1.weight": (8, 8)}, "a text encoder"),
        ({"down_blocks.0.motion_modules.0.x": (8, 8)}, "a motion module (AnimateDiff)"),
        ({"model.diffusion_model.distilled_guidance_layer.in_proj.bias": (8,)}, "a Chroma checkpoint"),
        (
            {
                **{
                    f"model.diffusion_model.{name}": (8, 8)
                    for name in ("input_blocks.0.0.weight", "label_emb.0.0.weight")
                },
                "model.diffusion_model.output_blocks.3.1.transformer_blocks.0.attn2.to_k.weight": (8, 1024),
            },
            "an SD 2.x with an embedding of its own (unCLIP, upscaler) checkpoint",
        ),
        ({"rock.weight": (8, 8), "fern.weight": (8, 8)}, "an unknown"),
    ],
)
def test_names_and_shapes_tell_the_rest(shapes: dict[str, tuple[int, ...]], what: str) -> None:
    assert str(contents_of(header(**shapes))) == what


def test_a_pipeline_an_ensemble_and_a_place_are_told(models: Path, tmp_path: Path) -> None:
    rock = only(models / "rock", hashed=True)
    assert rock.what == "SD 1.x pipeline (a folder of diffusers)"
    assert [part.name for part in rock.parts] == [
        "unet (UNet2DConditionModel)",
        "text_encoder (CLIPTextModel)",
        "vae (AutoencoderKL)",
    ]
    assert rock.prediction == "epsilon"
    unet = models / "rock/unet/diffusion_pytorch_model.safetensors"
    assert rock.files["unet/diffusion_pytorch_model.safetensors"] == hashlib.sha256(unet.read_bytes()).hexdigest()
    EnsembleDenoiser(load_experts([models / "rock", models / "fern"])).save_pretrained(tmp_path / "both")
    both = only(tmp_path / "both")
    assert both.what == "ensemble of 2 experts"
    assert both.notes["aggregator"] == "mean"
    assert both.notes["experts"].startswith("rock (")
    assert only(models / "rock/vae").what == "AutoencoderKL alone (a folder of diffusers)"
    assert [Path(report.path).name for report in inspect(models, hashed=False)] == ["fern", "moss", "rock"]


def test_hashes_marks_metadata_and_recipes_are_told(tmp_path: Path) -> None:
    marks = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    file = save_ldm(tiny_pipeline(), tmp_path / "opal.safetensors", extra=marks)
    report = only(file, hashed=True)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert (report.sha256, report.autov2) == (digest, digest[:10].upper())
    assert report.prediction == "v, zero terminal SNR"
    recipe = {
        "recipe": {"method": "weighted"},
        "inputs": [{"role": "expert", "source": "a", "sha256": {"weights": "0" * 64}}],
    }
    inpainting = save_ldm(tiny_pipeline(unet=tiny_unet(in_channels=9)), tmp_path / "in.safetensors")
    assert only(inpainting).notes == {"edition": "an inpainting model: it reads 9 channels"}
    assert only(inpainting).prediction == "not told by the file; usually epsilon"
    merged = write(
        {"first_stage_model.x": torch.ones(1)}, tmp_path / "m.safetensors", **{"diffusemble.merge": json.dumps(recipe)}
    )
    assert only(merged).recipe == recipe
    broken = write({"first_stage_model.x": torch.ones(1)}, tmp_path / "b.safetensors", **{"diffusemble.merge": "{"})
    assert only(broken).recipe == {"unreadable": "{"}
    odd = write({"a.weight": torch.ones(1)}, tmp_path / "odd.safetensors", **{"diffusemble.aggregator": "{"})
    assert only(odd).notes == {"aggregator": "unreadable", "experts": "?"}


def test_a_lora_tells_its_rank_its_parts_and_its_training(tmp_path: Path) -> None:
    pipeline = tiny_pipeline()
    names = shapes_of(pipeline.unet, ["to_q"]) | shapes_of(pipeline.text_encoder, ["fc1"], "lora_te_text_model_")
    tags = json.dumps({"10_moss": {"green": 5, "wet": 9}, "5_rock": {"wet ": 1}})
    file = write(
        kohya(names), tmp_path / "s.safetensors", ss_tag_frequency=tags, ss_sd_model_name="v1-5", ss_steps="None"
    )
    notes = only(file).notes
    assert notes["modules"] == "32 of the denoiser, 3 of the text encoder"
    assert (notes["formulas"], notes["rank"], notes["trained on"], notes["words"]) == (
        "LoRA",
        "3",
        "v1-5",
        "wet, green",
    )
    assert words("{") == words("[1]") == ""


def test_the_command_shows_tables_and_json(tmp_path: Path) -> None:
    tensors: dict[str, Tensor] = kohya({"lora_unet_x_attn2_to_k": (8, 768)})
    file = write(tensors, tmp_path / "style.safetensors", ss_steps="7", modelspec="x" * 200)
    (tmp_path / "page.safetensors").write_text("<html>")
    shown = CliRunner().invoke(app, ["inspect", str(file), str(tmp_path / "page.safetensors")])
    assert shown.exit_code == 0
    for text in (
        "LoRA for SD 1.x",
        "AutoV2",
        "is a web page",
        "1 of the denoiser",
        "1 settings of its training",
        "(200 char",
    ):
        assert text in shown.output
    plain = CliRunner().invoke(app, ["inspect", str(tmp_path), "--json", "--no-hash"])
    page, style = json.loads(plain.output)
    assert page["problem"].endswith("with a key of the site.")
    assert (style["kind"], style["family"], style["sha256"], style["autov2"]) == ("LoRA", "SD 1.x", None, None)
    assert style["metadata"]["modelspec"] == "x" * 200
    assert style["parts"][0]["dtypes"] == {"float32": 3 * (8 + 768) + 1}
