"""Single files of FLUX and SD3, files that hold only a denoiser, and narrow number types."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adapter_files import write
from diffusemble import EnsembleDenoiser, load_experts
from diffusemble.experts.inspection.folders import inspect
from diffusemble.experts.layouts.autoencoder import vae
from diffusemble.experts.layouts.flux import chroma, flux, flux2
from diffusemble.experts.layouts.sd3 import sd3
from diffusemble.experts.layouts.text_encoder import clip, embedding_t5, t5
from ldm import save_ldm
from ldm import unet as ldm_unet
from original import assert_equal, original
from tiny import small_pipeline, tiny_sdxl_pipeline, tiny_text_encoder
from tiny_dit import tiny_chroma_pipeline, tiny_flux, tiny_flux_pipeline, tiny_sd3, tiny_sd3_pipeline
from tiny_flux2 import tiny_flux2, tiny_flux2_pipeline
from tiny_qwen import tiny_qwen, tiny_qwen_pipeline


def sd3_pipeline(seed: int) -> Any:
    """The first encoder's pooled output is used as it is, and the second is wider, as in the real one."""
    first = tiny_text_encoder(seed, projection=True)
    first.text_projection.weight.data = torch.eye(32)
    return tiny_sd3_pipeline(seed, text_encoder=first)


FAMILIES: Mapping[str, tuple[Any, Any, Mapping[str, tuple[str, Any]]]] = {
    "flux": (
        tiny_flux_pipeline,
        flux,
        {"text_encoder": ("clip_l", clip), "text_encoder_2": ("t5xxl", t5)},
    ),
    "chroma": (tiny_chroma_pipeline, chroma, {"text_encoder": ("t5xxl", t5)}),
    "sd3": (
        sd3_pipeline,
        sd3,
        {"text_encoder": ("clip_l", clip), "text_encoder_2": ("clip_g", clip), "text_encoder_3": ("t5xxl", t5)},
    ),
}


pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")  # diffusers about Chroma


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Path]:
    """Name, a pipeline, and a base folder of another one."""
    build = FAMILIES[request.param][0]
    folder = tmp_path_factory.mktemp(request.param) / "base"
    build(0).save_pretrained(folder)
    return request.param, build(1), folder


@pytest.fixture(scope="module")
def flux_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flux") / "base"
    tiny_flux_pipeline(0).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_denoiser_alone_takes_the_rest_from_its_base(family: Any, prefix: str, tmp_path: Path) -> None:
    name, pipeline, base = family
    file = write(original(pipeline.transformer, FAMILIES[name][1], prefix), tmp_path / "opal.safetensors")
    expert, rock = load_experts([file, base])
    assert_equal(expert.denoiser, pipeline.transformer)
    assert type(pipeline) is expert.pipeline_class
    for part in ("vae", *FAMILIES[name][2]):
        assert expert.components[part] is rock.components[part]
    assert expert.files["base:text_encoder/model.safetensors"] == rock.files["text_encoder/model.safetensors"]


def test_a_file_with_everything_needs_nothing_of_its_base_but_the_configuration(family: Any, tmp_path: Path) -> None:
    name, pipeline, base = family
    _, layout, texts = FAMILIES[name]
    tensors = original(pipeline.transformer, layout, "model.diffusion_model.") | original(pipeline.vae, vae, "vae.")
    for part, (short, order) in texts.items():
        tensors |= original(getattr(pipeline, part), order, f"text_encoders.{short}.transformer.")
    (expert,) = load_experts(write(tensors, tmp_path / "opal.safetensors"), base=base)
    assert_equal(expert.denoiser, pipeline.transformer)
    for part in ("vae", *texts):
        assert_equal(expert.components[part], getattr(pipeline, part))
    assert list(expert.files) == ["weights"]


def test_t5_may_keep_its_embedding_under_the_other_name(flux_base: Path, tmp_path: Path) -> None:
    pipeline = tiny_flux_pipeline(1)
    text = original(pipeline.text_encoder_2, embedding_t5, "text_encoders.t5xxl.transformer.")
    assert not any(key.endswith("shared.weight") for key in text)
    file = write(original(pipeline.transformer, flux) | text, tmp_path / "opal.safetensors")
    (expert,) = load_experts(file, base=flux_base)
    assert_equal(expert.components["text_encoder_2"], pipeline.text_encoder_2)


def test_an_sd3_file_is_refused_with_a_flux_base_and_the_other_way_round(tmp_path: Path) -> None:
    pipeline = tiny_flux_pipeline(0)
    pipeline.save_pretrained(tmp_path / "base")
    other = write(original(tiny_sd3(), sd3), tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other.safetensors is an SD 3.5 checkpoint, but the base .* is FLUX.1. Give"):
        load_experts(other, base=tmp_path / "base")
    sdxl = tiny_sdxl_pipeline(0)
    file = write(
        {f"model.diffusion_model.{key}": t for key, t in ldm_unet(sdxl.unet).items()}, tmp_path / "xl.safetensors"
    )
    small_pipeline(0).save_pretrained(tmp_path / "sd1")
    with pytest.raises(ValueError, match=r"xl.safetensors is an SDXL checkpoint, but the base .*sd1 is SD 1.x. Give"):
        load_experts(file, base=tmp_path / "sd1")


def test_files_of_several_families_take_the_base_of_their_own(flux_base: Path, models: Path, tmp_path: Path) -> None:
    rock = save_ldm(small_pipeline(3), tmp_path / "rock.safetensors", without=["vae"])
    fern = write(original(tiny_flux(3), flux), tmp_path / "fern.safetensors")
    for experts in (
        load_experts([rock, fern], base=[flux_base, models / "rock"]),
        load_experts([rock, fern, flux_base, models / "rock"]),
    ):
        assert [experts[0].base, experts[1].base] == [str(models / "rock"), str(flux_base)]
        assert_equal(experts[1].denoiser, tiny_flux(3))


def test_a_part_that_the_bases_pipeline_lacks_is_left_out(tmp_path: Path) -> None:
    pipeline = tiny_sd3_pipeline(0)
    tiny_sd3_pipeline(1, text_encoder_3=None, tokenizer_3=None).save_pretrained(tmp_path / "base")
    text = original(pipeline.text_encoder_3, t5, "text_encoders.t5xxl.transformer.")
    file = write(original(pipeline.transformer, sd3, "model.diffusion_model.") | text, tmp_path / "opal.safetensors")
    (expert,) = load_experts(file, base=tmp_path / "base")
    assert "text_encoder_3" not in expert.components


def test_qwen_image_files_have_diffusers_names_under_any_prefix(tmp_path: Path) -> None:
    tiny_qwen_pipeline(0).save_pretrained(tmp_path / "base")
    transformer = tiny_qwen(1)
    named = {f"model.diffusion_model.{key}": tensor for key, tensor in transformer.state_dict().items()}
    (expert,) = load_experts(write(named, tmp_path / "opal.safetensors"), base=tmp_path / "base")
    assert_equal(expert.denoiser, transformer)


@pytest.mark.parametrize("build", [small_pipeline, tiny_sdxl_pipeline, tiny_flux_pipeline])
def test_a_denoiser_in_the_layout_of_diffusers_is_read_too(build: Any, tmp_path: Path) -> None:
    pipeline = build(0)
    pipeline.save_pretrained(tmp_path / "base")
    denoiser = getattr(pipeline, "unet", None) or pipeline.transformer
    for parameter in denoiser.parameters():
        parameter.data += 0.5
    (expert,) = load_experts(write(denoiser.state_dict(), tmp_path / "opal.safetensors"), base=tmp_path / "base")
    assert_equal(expert.denoiser, denoiser)


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.bfloat16, torch.float16])
def test_narrow_numbers_are_read_and_cast(kind: torch.dtype, flux_base: Path, tmp_path: Path) -> None:
    transformer = tiny_flux(1)
    tensors = original(transformer, flux)
    file = write({key: tensor.to(kind) for key, tensor in tensors.items()}, tmp_path / "narrow.safetensors")
    for dtype in (torch.float32, torch.bfloat16):
        (expert,) = load_experts(file, base=flux_base, dtype=dtype)
        theirs = transformer.state_dict()
        for key, tensor in expert.denoiser.state_dict().items():
            assert tensor.dtype == dtype
            assert torch.equal(tensor, theirs[key].to(kind).to(dtype)), key


def scaled(tensors: Mapping[str, Tensor], end: str) -> dict[str, Tensor]:
    """Every matrix in fp8 with a scale of its own, the rest as it is."""
    found: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if tensor.ndim == 2 and key.endswith(".weight"):
            scale = tensor.abs().max() / 448
            stem = key.removesuffix(".weight")
            found |= {
                key: (tensor / scale).to(torch.float8_e4m3fn),
                stem + end: scale,
                f"{stem}.scale_input": torch.ones(1),
            }
        else:
            found[key] = tensor
    return found


@pytest.mark.parametrize("end", [".scale_weight", ".weight_scale"])
def test_scaled_fp8_weights_are_what_they_stand_for(end: str, flux_base: Path, tmp_path: Path) -> None:
    transformer = tiny_flux(1)
    tensors = scaled(original(transformer, flux, "model.diffusion_model."), end)
    marker = {"model.diffusion_model.scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    (expert,) = load_experts(write({**tensors, **marker}, tmp_path / "scaled.safetensors"), base=flux_base)
    mine: nn.Module = expert.denoiser
    for key, tensor in transformer.state_dict().items():
        # Three bits of fraction: an error of at most 1/16, and of the smallest number in fp8.
        torch.testing.assert_close(
            mine.state_dict()[key], tensor, rtol=1 / 16, atol=float(tensor.abs().max()) / 448 / 512
        )


def test_scales_of_blocks_are_refused(flux_base: Path, tmp_path: Path) -> None:
    tensors = {key: t.to(torch.float8_e4m3fn) if t.ndim == 2 else t for key, t in original(tiny_flux(1), flux).items()}
    file = write({**tensors, "img_in.scale_weight": torch.ones(2, 3)}, tmp_path / "scaled.safetensors")
    with pytest.raises(ValueError, match=r"the scales 'img_in.scale_weight' have the shape \(2, 3\), but only one for"):
        load_experts(file, base=flux_base)


@pytest.mark.parametrize(
    ("extra", "what"),
    [
        (
            {"x.weight.quant_state.bitsandbytes__nf4": torch.zeros(3, dtype=torch.uint8)},
            r"nf4 \(bitsandbytes, 4 bits\)",
        ),
        ({"x.weight.absmax": torch.zeros(3)}, r"a block-wise quantisation \(bitsandbytes\)"),
        ({"x.SCB": torch.zeros(3)}, r"int8 \(bitsandbytes\)"),
        ({"x.wscales": torch.zeros(3)}, r"SVDQuant \(4 bits\)"),
        ({"x.weight": torch.zeros(3, 3, dtype=torch.int8)}, "I8"),
    ],
)
def test_quantised_files_are_refused_by_name(
    extra: dict[str, Tensor], what: str, flux_base: Path, tmp_path: Path
) -> None:
    file = write({**original(tiny_flux(), flux), **extra}, tmp_path / "small.safetensors")
    with pytest.raises(
        ValueError, match=rf"small.safetensors is quantised: {what}, which cannot be read here. Give its fp8"
    ):
        load_experts(file, base=flux_base)


def test_a_format_that_is_only_named_in_a_note_is_refused(flux_base: Path, tmp_path: Path) -> None:
    note = torch.tensor(list(b'{"format": "mxfp8"}'), dtype=torch.uint8)
    file = write({**original(tiny_flux(), flux), "img_in.comfy_quant": note}, tmp_path / "small.safetensors")
    with pytest.raises(ValueError, match="is quantised in the format 'mxfp8', which cannot be read here"):
        load_experts(file, base=flux_base)


def test_flux2_files_are_read_in_either_layout_and_beside_no_flux1(tmp_path: Path, flux_base: Path) -> None:
    tiny_flux2_pipeline(0, is_distilled=True).save_pretrained(tmp_path / "base")
    model = tiny_flux2(1)
    diffusers = {f"transformer.{key}": tensor for key, tensor in model.state_dict().items()}
    files = [
        write(tensors, tmp_path / f"{number}.safetensors")
        for number, tensors in enumerate((diffusers, original(model, flux2, "model.diffusion_model.")))
    ]
    experts = load_experts(files, base=tmp_path / "base")
    for expert, layout in zip(experts, ("diffusers", "original"), strict=True):
        assert_equal(expert.denoiser, model)
        assert expert.components["is_distilled"]
        (report,) = inspect(files[experts.index(expert)])
        assert (report.family, report.layout, report.prediction) == ("FLUX.2", layout, "flow")
    with pytest.raises(ValueError, match=r"0.safetensors is a FLUX.2 checkpoint, but the base .* is FLUX.1. Give"):
        load_experts(files[0], base=flux_base)
    other = write(original(tiny_flux(3), flux), tmp_path / "fern.safetensors")
    with pytest.raises(ValueError, match=r"fern.safetensors is a FLUX.1 checkpoint, but the base .* is FLUX.2. Give"):
        load_experts(other, base=tmp_path / "base")
    both = [*load_experts(other, base=flux_base), experts[0]]
    with pytest.raises(ValueError, match=r"denoiser class is 'Flux2Transformer2DModel', but expert 1 .* 'FluxTransf"):
        EnsembleDenoiser(both)


def test_a_lora_in_the_layout_of_flux2s_code_finds_its_places(tmp_path: Path) -> None:
    tiny_flux2_pipeline(0).save_pretrained(tmp_path / "base")
    before = tiny_flux2(0).state_dict()
    up, down = torch.randn(3 * 24, 2), torch.randn(2, 24)
    start = "diffusion_model.double_blocks.0.img_attn.qkv"
    lora = write({f"{start}.lora_B.weight": up, f"{start}.lora_A.weight": down}, tmp_path / "style.safetensors")
    (expert,) = load_experts(f"{tmp_path / 'base'}+{lora}")
    after = expert.denoiser.state_dict()
    names = [f"transformer_blocks.0.attn.to_{letter}.weight" for letter in "qkv"]
    for name, delta in zip(names, (up @ down).chunk(3), strict=True):
        assert torch.allclose(after[name], before[name] + delta, atol=1e-5)
    assert all(torch.equal(after[name], before[name]) for name in before.keys() - set(names))
