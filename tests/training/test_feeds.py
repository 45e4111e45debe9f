"""What the denoisers of each family are told of a picture, against what their own pipelines tell them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusemble.ensembles.block_level import EnsembleDenoiser
from diffusemble.ensembles.output_level import OutputEnsembleDenoiser
from diffusemble.experts.expert import Expert
from diffusemble.training.config import DataConfig
from diffusemble.training.corpus import Corpus, encode_corpus
from diffusemble.training.latents import to_latents
from tests.families.parts import tiny_pixart_pipeline
from tiny import as_expert, small_pipeline, tiny_refiner, tiny_sdxl_pipeline, tiny_vae
from tiny_dit import tiny_chroma_pipeline, tiny_flow_vae, tiny_flux, tiny_flux_pipeline, tiny_sd3_pipeline
from tiny_flux2 import tiny_flux2, tiny_flux2_pipeline, tiny_flux2_vae
from tiny_qwen import tiny_qwen_pipeline, tiny_qwen_vae
from training.small import small_config, write_pictures

FLOWS = (tiny_flux_pipeline, tiny_flux2_pipeline, tiny_sd3_pipeline, tiny_chroma_pipeline, tiny_qwen_pipeline)


def encode(experts: list[Expert], data: Path, output: Path, **changes: Any) -> Corpus:
    config = small_config(data, output, cache=output / "cache", **changes)
    return encode_corpus(config.data, config, EnsembleDenoiser(experts), lambda *_: None)


def test_latents_lose_the_shift_of_the_vae_and_are_scaled(pictures: Path, tmp_path: Path) -> None:
    experts = [as_expert(small_pipeline(vae=tiny_vae(shift_factor=0.3, scaling_factor=0.7)))]
    plain = [as_expert(small_pipeline(vae=tiny_vae(scaling_factor=1.0)))]
    found, raw = (encode(one, pictures, tmp_path).latents[[0, 1]] for one in (experts, plain))
    assert torch.allclose(found, (raw - 0.3) * 0.7, atol=1e-6)


def test_latents_are_measured_by_the_statistics_of_their_channels(pictures: Path, tmp_path: Path) -> None:
    """As SDXL's pipelines encode with them, and Qwen-Image's decodes."""
    plain, own = (
        tiny_vae(scaling_factor=0.7),
        tiny_vae(scaling_factor=0.7, latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 3.0, 4.0]),
    )
    squares = [2 * torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(seed)) - 1 for seed in range(3)]
    mean, deviation = torch.tensor([0.1, 0.2, 0.3, 0.4]).view(4, 1, 1), torch.tensor([1.0, 2, 3, 4]).view(4, 1, 1)
    assert torch.allclose(to_latents(squares, own), (to_latents(squares, plain) - 0.7 * mean) / deviation, atol=1e-5)
    film = tiny_qwen_vae()
    with torch.no_grad():
        frames = film.decode((1.2 * to_latents(squares, film) + 0.1)[:, :, None]).sample[:, :, 0]
        again = film.decode(film.encode(torch.stack(squares)[:, :, None]).latent_dist.mode()).sample[:, :, 0]
    assert torch.allclose(frames, again, atol=1e-5)


def test_latents_of_flux2_are_those_its_pipeline_encodes_to() -> None:
    vae, square = tiny_flux2_vae(), 2 * torch.rand(3, 16, 24, generator=torch.Generator().manual_seed(0)) - 1
    with torch.no_grad():
        expected = tiny_flux2_pipeline(vae=vae)._encode_vae_image(square[None], torch.Generator())
    assert torch.allclose(to_latents([square], vae), expected, atol=1e-5)
    assert expected.shape == (1, 16, 4, 6)
    with pytest.raises(ValueError, match=r"squares of 2 x 2, but pictures of this size become 7 x 12 latents"):
        to_latents([square[:, :14]], vae)


def test_encoding_takes_the_memory_of_a_few(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusemble.training.latents.VALUES_AT_ONCE", 3 * 3 * 16 * 16)
    monkeypatch.setattr("diffusemble.training.corpus.CAPTIONS_AT_ONCE", 4)
    pipeline, counts = small_pipeline(), {"vae": [0], "text_encoder": [0]}
    for part, module in (("vae", pipeline.vae.encoder), ("text_encoder", pipeline.text_encoder)):

        def count(_: torch.nn.Module, args: Any, given: Any, part: str = part) -> None:
            counts[part].append(len(args[0] if args else given["input_ids"]))

        module.register_forward_pre_hook(count, with_kwargs=True)
    encode([as_expert(pipeline)], pictures, tmp_path)
    assert (max(counts["vae"]), sum(counts["vae"])) == (3, 10)
    assert max(counts["text_encoder"]) == 4


def test_sdxl_is_told_every_files_own_size_and_where_it_was_cut(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", sides=[(20, 24), (33, 16), (16, 40)])
    experts = [as_expert(tiny_sdxl_pipeline(seed), f"expert {seed}") for seed in range(2)]
    corpus = encode(experts, tmp_path / "pictures", tmp_path)
    rows, dropped = torch.tensor([0, 1, 2]), torch.tensor([False, True, False])
    inputs = corpus.inputs(rows, dropped)
    added = inputs["added_cond_kwargs"]
    # Height and width of the file; top and left in the picture whose shorter side is 16; height and width now.
    assert added["time_ids"].tolist() == [[20, 24, 0, 1, 16, 16], [33, 16, 8, 0, 16, 16], [16, 40, 0, 12, 16, 16]]
    for tensor in (inputs["encoder_hidden_states"], added["text_embeds"]):
        assert (tensor[1] == 0).all()  # this pipeline draws from zeros where there is no prompt
        assert (tensor[[0, 2]] != 0).any(dim=-1).all()
    latents, times = corpus.latents[[0, 1, 2]], torch.tensor([1, 2, 3])
    assert corpus.feed.predict(EnsembleDenoiser(experts), latents, times, inputs).shape == latents.shape
    random = encode(experts, tmp_path / "pictures", tmp_path, crop="random")
    corners = random.inputs(rows, dropped)["added_cond_kwargs"]["time_ids"][:, 2:4]
    assert (corners != added["time_ids"][:, 2:4]).any()
    assert (corners >= 0).all()


def test_sdxl_of_a_square_picture_is_told_what_its_pipeline_tells(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", sides=[(16, 16)])
    pipeline = tiny_sdxl_pipeline()
    told: dict[str, Any] = {}
    pipeline.unet.register_forward_pre_hook(lambda _, args, given: told.update(given), with_kwargs=True)
    pipeline("picture 0", height=16, width=16, num_inference_steps=1, guidance_scale=5.0, output_type="latent")
    corpus = encode([as_expert(pipeline)], tmp_path / "pictures", tmp_path)
    inputs = corpus.inputs(torch.tensor([0, 0]), torch.tensor([True, False]))  # without the prompt, then with it
    assert torch.allclose(inputs["encoder_hidden_states"], told["encoder_hidden_states"], atol=1e-5)
    for name in ("text_embeds", "time_ids"):
        assert torch.allclose(inputs["added_cond_kwargs"][name], told["added_cond_kwargs"][name], atol=1e-5)


def test_the_refiner_is_told_how_beautiful_a_picture_is(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", sides=[(16, 24)] * 3, aesthetic_score=[7.25, None, 3.5])
    corpus = encode([as_expert(tiny_refiner())], tmp_path / "pictures", tmp_path)
    time_ids = corpus.inputs(torch.arange(3), torch.tensor([False, False, True]))["added_cond_kwargs"]["time_ids"]
    # Its pipeline's defaults are 6 with the prompt and 2.5 without it.
    assert time_ids.tolist() == [[16, 24, 0, 4, 7.25], [16, 24, 0, 4, 6], [16, 24, 0, 4, 2.5]]


def test_the_refiner_draws_with_what_it_is_trained_with(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", sides=[(16, 16)])
    pipeline, told = tiny_refiner(), {}
    pipeline.unet.register_forward_pre_hook(lambda _, args, given: told.update(given), with_kwargs=True)
    picture = torch.rand(1, 3, 16, 16)
    pipeline("picture 0", image=picture, num_inference_steps=4, strength=0.3, guidance_scale=5.0, output_type="latent")
    corpus = encode([as_expert(pipeline)], tmp_path / "pictures", tmp_path)
    inputs = corpus.inputs(torch.tensor([0, 0]), torch.tensor([True, False]))
    for name in ("text_embeds", "time_ids"):
        assert torch.allclose(inputs["added_cond_kwargs"][name], told["added_cond_kwargs"][name], atol=1e-5)


def test_scores_come_from_the_column_that_is_named(tmp_path: Path) -> None:
    from diffusemble.training.data import open_source

    write_pictures(tmp_path / "pictures", sides=[(16, 16)] * 2, beauty=[5, "high"])
    plain = open_source(DataConfig(path=str(tmp_path / "pictures")))
    assert all(math.isnan(picture.score) for picture in plain.pictures())
    with pytest.raises(ValueError, match=r"from 1 to 10, but 'beauty' says 'high'. Correct it, or name another column"):
        open_source(DataConfig(path=str(tmp_path / "pictures"), score_column="beauty"))
    table = tmp_path / "pictures" / "metadata.jsonl"
    table.write_text(
        "".join(json.dumps({**json.loads(row), "beauty": 5}) + "\n" for row in table.read_text().splitlines())
    )
    named = open_source(DataConfig(path=str(tmp_path / "pictures"), score_column="beauty"))
    assert [picture.score for picture in named.pictures()] == [5, 5]
    assert named.stamp != plain.stamp


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"embedded_guidance": 3.5},
            r"a guidance scale \(FLUX.1 dev\), and these have no weights for it; got 3.5",
        ),
        ({"text_tokens": 64}, r"prompts for T5 \(FLUX, SD3\), and these experts read CLIP alone, .* got 64"),
    ],
)
def test_what_a_family_cannot_be_told_is_refused(
    pictures: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        encode([as_expert(tiny_sdxl_pipeline())], pictures, tmp_path, **changes)


# -- flow matching -----------------------------------------------------------------------------------------------------


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


def test_denoisers_that_nothing_is_known_of_are_refused(pictures: Path, tmp_path: Path) -> None:
    message = r"Unknown denoiser class that training can feed 'PixArtTransformer2DModel'. Choose one of: UNet2D"
    ensemble, config = OutputEnsembleDenoiser([as_expert(tiny_pixart_pipeline())]), small_config(pictures, tmp_path)
    with pytest.raises(ValueError, match=message):
        encode_corpus(config.data, config, ensemble, lambda *_: None)
