"""Diffusers folders and real checkpoints in, models that diffusers opens out."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from diffusemble import load_experts
from diffusemble.experts.sources import Source
from diffusemble.merging.config import MergeConfig
from diffusemble.merging.merge import RECORD, merge
from diffusemble.merging.methods import weighted_average
from diffusemble.merging.models import find
from tests.ldm import save_ldm
from tests.tiny import tiny_pipeline, tiny_scheduler, tiny_sdxl_pipeline, tiny_text_encoder, tiny_unet

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def pipelines() -> tuple[StableDiffusionPipeline, StableDiffusionPipeline]:
    return tiny_pipeline(0), tiny_pipeline(1)


@pytest.fixture(scope="module")
def folders(pipelines, tmp_path_factory) -> tuple[str, str]:
    root = tmp_path_factory.mktemp("folders")
    for name, pipeline in zip("ab", pipelines, strict=True):
        pipeline.save_pretrained(root / name)
    return str(root / "a"), str(root / "b")


def test_all_of_the_first_is_the_first_in_diffusers(pipelines, folders, tmp_path):
    result = merge(MergeConfig(experts=folders, options={"shares": [1, 0]}, out=str(tmp_path / "out")))
    assert set(result.parts) == {"unet", "text_encoder"}
    opened = StableDiffusionPipeline.from_pretrained(result.out)
    for part in ("unet", "text_encoder", "vae"):
        expected, ours = getattr(pipelines[0], part).state_dict(), getattr(opened, part).state_dict()
        assert all(torch.equal(ours[key], tensor) for key, tensor in expected.items())
    rest = {f.relative_to(folders[0]).as_posix() for f in Path(folders[0]).rglob("*") if f.is_file()} | {RECORD}
    assert {f.relative_to(result.out).as_posix() for f in result.out.rglob("*") if f.is_file()} == rest


def test_half_of_each_is_the_average(pipelines, folders, tmp_path):
    merge(MergeConfig(experts=folders, method="soup", out=str(tmp_path / "out")))
    expected = weighted_average([pipeline.unet.state_dict() for pipeline in pipelines])
    for key, tensor in load_file(tmp_path / "out" / UNET).items():
        assert torch.equal(tensor, expected[key])
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert record["recipe"]["method"] == "soup"
    assert [given["source"] for given in record["inputs"]] == list(folders)
    assert UNET in record["inputs"][0]["sha256"]
    expert = load_experts(tmp_path / "out")[0]
    assert torch.equal(expert.denoiser.conv_in.weight, expected["conv_in.weight"])


def test_parts_that_are_the_same_are_copied_and_weights_beside_are_not(folders, tmp_path):
    pipeline = tiny_pipeline(3, text_encoder=tiny_text_encoder(0))
    pipeline.save_pretrained(tmp_path / "c")
    (tmp_path / "c/unet/diffusion_pytorch_model.bin").write_bytes(b"pickle")
    (tmp_path / "c/whole.safetensors").write_bytes(b"weights")
    result = merge(MergeConfig(experts=(str(tmp_path / "c"), folders[0]), out=str(tmp_path / "out")))
    assert result.parts == ("unet",)
    assert not list(result.out.rglob("*.bin"))
    assert not (result.out / "whole.safetensors").exists()
    copied = "text_encoder/model.safetensors"
    assert (result.out / copied).read_bytes() == (tmp_path / "c" / copied).read_bytes()


def test_shards_stay_shards(pipelines, folders, tmp_path):
    pipelines[0].save_pretrained(tmp_path / "c", max_shard_size="200KB")
    merge(MergeConfig(experts=(str(tmp_path / "c"), folders[1]), out=str(tmp_path / "out")))
    names = sorted(file.name for file in (tmp_path / "out/unet").glob("*.safetensors"))
    assert names == sorted(file.name for file in (tmp_path / "c/unet").glob("*.safetensors"))
    assert len(names) > 1
    opened = StableDiffusionPipeline.from_pretrained(tmp_path / "out")
    expected = weighted_average([pipeline.unet.state_dict() for pipeline in pipelines])
    assert all(torch.equal(tensor, expected[key]) for key, tensor in opened.unet.state_dict().items())


def test_merged_checkpoints_are_the_merged_folders(pipelines, folders, tmp_path):
    files = [save_ldm(p, tmp_path / f"{name}.safetensors") for name, p in zip("ab", pipelines, strict=True)]
    out = tmp_path / "merged.safetensors"
    merge(MergeConfig(experts=[str(file) for file in files], blocks=["GRAD_V"], out=str(out)))
    opened = load_experts(out, base=folders[0])[0].denoiser.state_dict()
    merge(MergeConfig(experts=folders, blocks=["GRAD_V"], out=str(tmp_path / "folder")))
    expected = load_file(tmp_path / "folder" / UNET)
    assert all(torch.equal(opened[key], tensor) for key, tensor in expected.items())
    first = pipelines[0].unet.state_dict()
    assert (
        len({torch.equal(first[key], tensor) for key, tensor in expected.items()}) == 2
    )  # some blocks are the first's


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: tiny_pipeline(2, unet=tiny_unet(2, attention_head_dim=2)), r"attention_head_dim of the unet is 2 in"),
        (
            lambda: tiny_pipeline(2, scheduler=tiny_scheduler(prediction_type="v_prediction")),
            r"prediction_type of the scheduler is 'v_prediction' in .*c and 'epsilon' in .*a",
        ),
        (
            lambda: tiny_pipeline(2, text_encoder=tiny_text_encoder(2, intermediate_size=41)),
            r"fc1.bias' of the text_encoder is \(41,\) in .*c and \(37,\) in .*a\. Use models",
        ),
        (lambda: tiny_sdxl_pipeline(2), "has a text_encoder_2 and .* has none"),
    ],
)
def test_folders_that_do_not_fit_are_refused(other, message, folders, tmp_path):
    other().save_pretrained(tmp_path / "c")
    with pytest.raises(ValueError, match=message):
        merge(MergeConfig(experts=(folders[0], str(tmp_path / "c")), out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_layouts_and_names_must_fit(pipelines, folders, tmp_path):
    file = save_ldm(pipelines[0], tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"is a folder and .*a.safetensors is a file. Give only folders or only files"):
        merge(MergeConfig(experts=(folders[0], str(file)), out=str(tmp_path / "out")))
    with pytest.raises(ValueError, match=r"a folder, without an ending; got .*out.safetensors"):
        merge(MergeConfig(experts=folders, out=str(tmp_path / "out.safetensors")))
    with pytest.raises(ValueError, match="base is one model; 'zoo:topics' is 3"):
        merge(MergeConfig(experts=folders, base="zoo:topics", method="ties", out=str(tmp_path / "out")))


def test_models_of_the_zoo_can_be_merged():
    assert set(find(Source("zoo", "people")).parts) == {"unet", "text_encoder"}
