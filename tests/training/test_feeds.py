"""Latents, and what experts that are no flows are told beside them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusemble.ensembles.block_level import EnsembleDenoiser
from diffusemble.ensembles.output_level import OutputEnsembleDenoiser
from diffusemble.training.config import DataConfig
from diffusemble.training.corpus import encode_corpus
from diffusemble.training.latents import to_latents
from tests.families.parts import tiny_pixart_pipeline
from tiny import as_expert, small_pipeline, tiny_refiner, tiny_sdxl_pipeline, tiny_vae
from tiny_qwen import tiny_qwen_vae
from training.small import encode, small_config, write_pictures


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


def test_denoisers_that_nothing_is_known_of_are_refused(pictures: Path, tmp_path: Path) -> None:
    message = r"Unknown denoiser class that training can feed 'PixArtTransformer2DModel'. Choose one of: UNet2D"
    ensemble, config = OutputEnsembleDenoiser([as_expert(tiny_pixart_pipeline())]), small_config(pictures, tmp_path)
    with pytest.raises(ValueError, match=message):
        encode_corpus(config.data, config, ensemble, lambda *_: None)
