"""What experts of flows are told beside the latents: text, guidance, places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from diffusemble.training.latents import to_latents
from tiny import as_expert
from tiny_dit import tiny_chroma_pipeline, tiny_flow_vae, tiny_flux, tiny_flux_pipeline, tiny_sd3_pipeline
from tiny_flux2 import tiny_flux2, tiny_flux2_pipeline, tiny_flux2_vae
from tiny_qwen import tiny_qwen_pipeline
from training.small import encode, write_pictures

FLOWS = (tiny_flux_pipeline, tiny_flux2_pipeline, tiny_sd3_pipeline, tiny_chroma_pipeline, tiny_qwen_pipeline)


def test_latents_of_flux2_are_those_its_pipeline_encodes_to() -> None:
    vae, square = tiny_flux2_vae(), 2 * torch.rand(3, 16, 24, generator=torch.Generator().manual_seed(0)) - 1
    with torch.no_grad():
        expected = tiny_flux2_pipeline(vae=vae)._encode_vae_image(square[None], torch.Generator())
    assert torch.allclose(to_latents([square], vae), expected, atol=1e-5)
    assert expected.shape == (1, 16, 4, 6)
    with pytest.raises(ValueError, match=r"squares of 2 x 2, but pictures of this size become 7 x 12 latents"):
        to_latents([square[:, :14]], vae)


def listen(denoiser: torch.nn.Module) -> dict[str, Any]:
    """What the denoiser is told, and says, when it is called last."""
    heard: dict[str, Any] = {}

    def hear(_: torch.nn.Module, args: tuple[Any, ...], given: dict[str, Any], said: Any) -> None:
        assert not args
        heard.update(given, said=said[0])

    denoiser.register_forward_hook(hear, with_kwargs=True)
    return heard


@pytest.mark.parametrize("told", [True, False])
def test_flux_is_told_what_its_pipeline_tells(tmp_path: Path, told: bool) -> None:
    write_pictures(tmp_path / "pictures", sides=[(16, 16)])
    pipeline = tiny_flux_pipeline(transformer=tiny_flux(guidance_embeds=told))
    heard = listen(pipeline.transformer)
    arguments = {"height": 16, "width": 16, "num_inference_steps": 1, "max_sequence_length": 24}
    pipeline("picture 0", guidance_scale=2.5, output_type="latent", **arguments)
    drawn = dict(heard)
    choices = {"embedded_guidance": 2.5} if told else {}
    corpus = encode([as_expert(pipeline)], tmp_path / "pictures", tmp_path, text_tokens=24, **choices)
    inputs = corpus.inputs(torch.tensor([0]), torch.tensor([False]))
    noisy = pipeline._unpack_latents(drawn["hidden_states"], 16, 16, 2)
    said = corpus.feed.predict(pipeline.transformer, noisy, 1000 * drawn["timestep"], inputs)
    for name in ("hidden_states", "encoder_hidden_states", "pooled_projections", "img_ids", "txt_ids", "timestep"):
        assert torch.allclose(heard[name], drawn[name], atol=1e-5), name
    assert (heard.get("guidance") is not None) == told
    assert torch.allclose(pipeline._pack_latents(said, 1, 4, 8, 8), drawn["said"], atol=1e-5)
    assert corpus.feed.image_tokens(8, 8) == drawn["hidden_states"].shape[1]


def test_guidance_distilled_flux_is_trained_at_guidance_one(pictures: Path, tmp_path: Path) -> None:
    corpus = encode([as_expert(tiny_flux_pipeline())], pictures, tmp_path)
    inputs = corpus.inputs(torch.tensor([0, 1]), torch.tensor([False, True]))
    assert inputs["guidance"].tolist() == [1, 1]
    assert not torch.equal(inputs["pooled_projections"][0], inputs["pooled_projections"][1])


def test_chroma_is_told_what_its_pipeline_tells(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", sides=[(16, 16)])
    pipeline = tiny_chroma_pipeline()
    heard = listen(pipeline.transformer)
    arguments = {"height": 16, "width": 16, "num_inference_steps": 1, "max_sequence_length": 24}
    pipeline("picture 0", guidance_scale=1.0, output_type="latent", **arguments)
    drawn = dict(heard)
    corpus = encode([as_expert(pipeline)], tmp_path / "pictures", tmp_path, text_tokens=24)
    noisy = pipeline._unpack_latents(drawn["hidden_states"], 16, 16, 2)
    inputs = corpus.inputs(torch.tensor([0]), torch.tensor([False]))
    said = corpus.feed.predict(pipeline.transformer, noisy, 1000 * drawn["timestep"], inputs)
    for name in ("hidden_states", "encoder_hidden_states", "attention_mask", "img_ids", "txt_ids", "timestep"):
        assert torch.allclose(heard[name], drawn[name].to(heard[name]), atol=1e-5), name
    assert torch.allclose(pipeline._pack_latents(said, 1, 4, 8, 8), drawn["said"], atol=1e-5)


@pytest.mark.parametrize("guided", [False, True], ids=["klein", "dev"])
def test_flux2_is_told_what_its_pipeline_tells(tmp_path: Path, guided: bool) -> None:
    write_pictures(tmp_path / "pictures", sides=[(16, 16)])
    pipeline = tiny_flux2_pipeline()
    heard = listen(pipeline.transformer)
    arguments = {"height": 16, "width": 16, "num_inference_steps": 1, "max_sequence_length": 40}
    pipeline(prompt="picture 0", guidance_scale=1.0, output_type="latent", **arguments)
    drawn = dict(heard)
    pipeline.transformer = tiny_flux2(guidance_embeds=True) if guided else pipeline.transformer
    heard = listen(pipeline.transformer)
    corpus = encode([as_expert(pipeline)], tmp_path / "pictures", tmp_path, text_tokens=40)
    noisy = drawn["hidden_states"].mT.reshape(1, 16, 4, 4)
    inputs = corpus.inputs(torch.tensor([0]), torch.tensor([False]))
    said = corpus.feed.predict(pipeline.transformer, noisy, 1000 * drawn["timestep"], inputs)
    for name in ("hidden_states", "encoder_hidden_states", "img_ids", "txt_ids", "timestep"):
        assert torch.allclose(heard[name], drawn[name].to(heard[name]), atol=1e-5), name
    assert corpus.shape == (16, 4, 4)
    assert corpus.feed.image_tokens(4, 4) == drawn["hidden_states"].shape[1]
    if guided:
        assert heard["guidance"].tolist() == [1]
    else:
        assert "guidance" not in inputs
        assert torch.allclose(pipeline._pack_latents(said), drawn["said"], atol=1e-5)


def test_qwen_is_told_what_its_pipeline_tells(tmp_path: Path) -> None:
    """Also beside a longer prompt: what fills the shorter one up is masked."""
    write_pictures(tmp_path / "pictures", sides=[(16, 16)])
    pipeline = tiny_qwen_pipeline()
    heard = listen(pipeline.transformer)
    pipeline("", height=16, width=16, num_inference_steps=1, true_cfg_scale=1.0, output_type="latent")
    drawn = dict(heard)
    corpus = encode([as_expert(pipeline)], tmp_path / "pictures", tmp_path)
    noisy = pipeline._unpack_latents(drawn["hidden_states"], 8, 8, 1)[:, :, 0]
    for rows, dropped in (([0], [True]), ([0, 0], [False, True])):
        inputs = corpus.inputs(torch.tensor(rows), torch.tensor(dropped))
        said = corpus.feed.predict(
            pipeline.transformer, noisy.repeat(len(rows), 1, 1, 1), drawn["timestep"] * 1000, inputs
        )
        assert heard["img_shapes"][-1] == drawn["img_shapes"][0]
        for name in ("hidden_states", "encoder_hidden_states", "timestep"):
            length = drawn[name].shape[1:2]
            own = heard[name][-1:, : length[0]] if length else heard[name][-1:]
            assert torch.allclose(own, drawn[name], atol=1e-5), name
        assert torch.allclose(pipeline._pack_latents(said, len(rows), 4, 8, 8)[-1:], drawn["said"], atol=1e-5)
    longer, shorter = inputs["encoder_hidden_states_mask"].sum(dim=1).tolist()
    assert longer - shorter == len("picture 0")
    assert inputs["encoder_hidden_states"].shape[1] == longer
    assert corpus.feed.image_tokens(8, 8) == 16


@pytest.mark.parametrize("t5", [True, False])
def test_sd3_is_told_what_its_pipeline_tells(tmp_path: Path, t5: bool) -> None:
    write_pictures(tmp_path / "pictures", sides=[(16, 16)])
    pipeline = tiny_sd3_pipeline(**({} if t5 else {"text_encoder_3": None, "tokenizer_3": None}))
    heard = listen(pipeline.transformer)
    arguments = {"height": 16, "width": 16, "num_inference_steps": 1, "max_sequence_length": 24}
    pipeline("picture 0", guidance_scale=5.0, output_type="latent", **arguments)
    drawn = dict(heard)
    corpus = encode([as_expert(pipeline)], tmp_path / "pictures", tmp_path, text_tokens=24)
    inputs = corpus.inputs(torch.tensor([0, 0]), torch.tensor([True, False]))
    said = corpus.feed.predict(pipeline.transformer, drawn["hidden_states"], drawn["timestep"], inputs)
    for name in ("encoder_hidden_states", "pooled_projections"):
        assert torch.allclose(heard[name], drawn[name], atol=1e-5), name
    assert torch.allclose(said, drawn["said"], atol=1e-5)
    assert (inputs["encoder_hidden_states"][:, -24:] == 0).all() != t5
    assert corpus.feed.image_tokens(8, 8) == 16


@pytest.mark.parametrize("make", FLOWS)
def test_every_flow_expert_reads_with_its_own_encoders(pictures: Path, tmp_path: Path, make: Any) -> None:
    pipelines = [make(seed) for seed in range(2)]
    both = [as_expert(pipeline, f"expert {seed}") for seed, pipeline in enumerate(pipelines)]
    rows, dropped = torch.tensor([3, 4]), torch.tensor([False, True])
    packed = encode(both, pictures, tmp_path).inputs(rows, dropped)
    alone = [encode([expert], pictures, tmp_path).inputs(rows, dropped) for expert in both]
    for name in packed.keys() & {"encoder_hidden_states", "pooled_projections"}:
        expected = torch.cat([one[name] for one in alone], dim=1)
        assert torch.allclose(packed[name], expected, atol=1e-5), name
        assert not torch.allclose(alone[0][name], alone[1][name], atol=1e-2), name


def test_sizes_that_cannot_be_cut_into_patches_are_refused(pictures: Path, tmp_path: Path) -> None:
    corpus = encode([as_expert(tiny_flux_pipeline(vae=tiny_flow_vae()))], pictures, tmp_path, size=14)
    with pytest.raises(ValueError, match=r"squares of 2 x 2, but pictures of this size become 7 x 7 latents"):
        corpus.feed.image_tokens(*corpus.shape[1:])


def test_text_that_experts_share_is_kept_once(pictures: Path, tmp_path: Path) -> None:
    pipelines = [tiny_flux_pipeline(seed) for seed in range(3)]
    shared = {name: pipelines[0].components[name] for name in ("text_encoder", "text_encoder_2")}
    pipelines[2].register_modules(**shared)
    experts = [as_expert(pipeline, f"expert {seed}") for seed, pipeline in enumerate(pipelines)]
    corpus = encode(experts, pictures, tmp_path, text_tokens=24)
    assert corpus.readers.order == (0, 1, 0)
    assert corpus.text["encoder_hidden_states"][[0]].shape[1] == 2 * 24
    packed = corpus.inputs(torch.tensor([3]), torch.tensor([False]))
    for name in ("encoder_hidden_states", "pooled_projections"):
        one, two, three = packed[name].chunk(3, dim=1)
        assert torch.equal(one, three)
        assert not torch.allclose(one, two, atol=1e-2)
