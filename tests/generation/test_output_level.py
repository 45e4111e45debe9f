"""Experts that differ, from a configuration to pictures, and from a folder back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageChops
from typer.testing import CliRunner

from diffusemble import EnsembleDenoiser, GenerateConfig, OutputEnsembleDenoiser, generate, load_experts, open_ensemble
from diffusemble.app.cli import app
from diffusemble.calls import guidance_of
from diffusemble.comparison import OUTPUT_MEAN, TOGETHER
from diffusemble.description import Point, describe
from diffusemble.ensembles.output_level import build_output_aggregator
from diffusemble.evaluation.config import EvaluateConfig
from diffusemble.evaluation.specs import choose_systems
from diffusemble.evaluation.specs import open_ensemble as open_evaluated
from diffusemble.generation import build_ensemble
from diffusemble.training.config import TrainConfig
from diffusemble.training.feeds.base import Choices, feed_of, whole_pictures
from tests.families.parts import draw, expert, tiny_pixart_pipeline, tiny_wider_pipeline, together
from tiny import randomised, tiny_pipeline
from tiny_dit import tiny_chroma_pipeline, tiny_flux_pipeline
from tiny_z_image import tiny_z_image_pipeline

FAST: dict[str, Any] = {"prompts": "a fox", "steps": 2, "height": 16, "width": 16, "device": "cpu"}


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """An expert that predicts noise and one that predicts v, with other text encoders and tokenizers."""
    root = tmp_path_factory.mktemp("unlike")
    tiny_pipeline().save_pretrained(root / "noise")
    tiny_wider_pipeline().save_pretrained(root / "velocity")
    return str(root / "noise"), str(root / "velocity")


@pytest.fixture(scope="session")
def saved(sources: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    experts = load_experts(sources)
    torch.manual_seed(0)
    ensemble = OutputEnsembleDenoiser(experts, randomised(build_output_aggregator("sabw", experts, preset="tiny")))
    folder = tmp_path_factory.mktemp("output-level")
    ensemble.save_pretrained(folder)
    return folder


def test_a_saved_ensemble_comes_back_at_its_level(sources: tuple[str, str], saved: Path) -> None:
    experts = load_experts(sources)
    torch.manual_seed(0)
    aggregator = randomised(build_output_aggregator("sabw", experts, preset="tiny"))
    again = open_ensemble(saved).eval()
    assert isinstance(again, OutputEnsembleDenoiser)
    assert (draw(again.pipeline()) == draw(OutputEnsembleDenoiser(experts, aggregator).pipeline())).all()
    assert json.loads((saved / "ensemble.json").read_text())["experts"][1]["name"] == "velocity"
    with pytest.raises(ValueError, match=r"combine what they predict \(level: output, OutputEnsembleDenoiser\)"):
        EnsembleDenoiser.from_pretrained(saved)


def test_a_configuration_draws_at_output_level(sources: tuple[str, str], saved: Path) -> None:
    seen: list[str] = []
    config = GenerateConfig(
        **FAST,
        experts=sources,
        level="output",
        aggregator={"name": "sabw", "options": {"preset": "tiny"}},
        compare=True,
        attention=True,
    )
    drawn = generate(config, lambda share, what: seen.append(what))
    assert list(dict.fromkeys(seen)) == ["loading experts", "noise", "velocity", OUTPUT_MEAN, TOGETHER]
    assert drawn.pictures[0].maps[0].name == "prediction"
    assert drawn.attention().size[0] > 0
    again = generate(drawn.config.model_copy(update={"compare": False, "attention": None}))
    assert ImageChops.difference(drawn.pictures[0].image, again.pictures[0].image).getbbox() is None
    assert isinstance(build_ensemble(GenerateConfig(**FAST, ensemble=str(saved))), OutputEnsembleDenoiser)


def test_the_zoo_s_trained_aggregator_is_for_blocks(sources: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="'level' and 'aggregator' out"):
        GenerateConfig(**FAST, ensemble="somewhere", level="output")
    with pytest.raises(ValueError, match=r"level: output, OutputEnsembleDenoiser"):
        build_ensemble(GenerateConfig(**FAST, experts=sources))


def test_a_pipeline_that_reports_no_steps_draws_all_the_same(sources: tuple[str, str], tmp_path: Path) -> None:
    tiny_pixart_pipeline().save_pretrained(tmp_path / "pixart")
    found = generate(
        GenerateConfig(**FAST, level="output", experts=(str(tmp_path / "pixart"), sources[0]), compare=True)
    )
    assert found.pictures[0].image.size == (16, 16)
    assert found.sheet is not None


@pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")  # diffusers about its own Chroma
def test_flux_and_its_relatives_from_folders_to_pictures_and_back(tmp_path: Path) -> None:
    """FLUX and Chroma by the command line, in either order; with Z-Image and a learned aggregator, saved and opened."""
    folders = [str(tmp_path / name) for name in ("flux", "chroma", "z-image")]
    makes: Any = tiny_flux_pipeline, tiny_chroma_pipeline, tiny_z_image_pipeline
    for make, folder in zip(makes, folders, strict=True):
        make(3).save_pretrained(folder)
    for number, (first, second) in enumerate((folders[:2], folders[1::-1])):
        flags = ["-e", first, "-e", second, "--level", "output", "--negative", "fog", "--steps", "1", "--size", "16x16"]
        done = CliRunner().invoke(app, ["generate", "a fox", *flags, "--out", str(tmp_path / f"{number}.png")])
        assert done.exit_code == 0, done.output
    with Image.open(tmp_path / "0.png") as one, Image.open(tmp_path / "1.png") as other:
        assert one.tobytes() == other.tobytes()
    seen: list[str] = []
    alone = GenerateConfig(**FAST, experts=folders[1::-1], level="output", negative="fog", compare=True)
    with pytest.raises(ValueError, match="negative: guidance is built into these experts"):  # of FLUX alone
        generate(alone, lambda share, what: seen.append(what))
    assert seen == ["loading experts"]
    experts = load_experts(folders[::-1])
    ensemble = OutputEnsembleDenoiser(experts, randomised(build_output_aggregator("sabw", experts, preset="tiny")))
    ensemble.save_pretrained(tmp_path / "saved")
    one, other = (
        draw(made.eval().pipeline(), num_inference_steps=1) for made in (ensemble, open_ensemble(tmp_path / "saved"))
    )
    assert (one == other).all()


def test_guidance_is_meant_for_the_flux_that_reads_it() -> None:
    """Also in the pipeline of one that does not, where it is no reason to ask both of them twice."""
    experts = [expert(name) for name in ("FLUX without guidance", "FLUX")]
    for own in (experts, experts[::-1]):
        pipeline = together(own).pipeline()
        assert guidance_of(pipeline, 2.0, [""]) == {"guidance_scale": 2.0}
        feed = feed_of(pipeline, Choices(guidance=2.5))
        text = feed.encode(pipeline, ["a fox"])
        assert feed.inputs(text, whole_pictures(1, 16, 16))["guidance"].tolist() == [2.5]
    assert guidance_of(together(experts[:1]).pipeline(), 2.0, ["fog"])["true_cfg_scale"] == 2.0


def test_what_needs_blocks_says_so(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"every expert runs whole.*level: block"):
        open_ensemble(saved).blocks


@pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")  # diffusers about its own Chroma
@pytest.mark.parametrize("name", ["SD 1", "SDXL", "SD 3", "FLUX", "Chroma", "Z-Image"])
def test_an_expert_costs_the_same_at_either_level(name: str) -> None:
    whole, inside = (describe(level([expert(name)]), (8, 12)) for level in (OutputEnsembleDenoiser, EnsembleDenoiser))
    assert whole.expert_flops == whole.ensemble_flops == inside.expert_flops > 0
    assert whole.latents == inside.latents == (4, 8, 12)
    assert whole.experts == inside.experts


def test_experts_that_differ_are_described_one_by_one() -> None:
    experts = [expert(name) for name in ("SD 1", "SD 2", "PixArt")]
    found = describe(together(experts, weights=(2, 1, 1)))
    assert [one.kind for one in found.experts] == [type(one.denoiser).__name__ for one in experts]
    assert len({one.flops for one in found.experts}) == 3
    assert found.ensemble_flops == sum(one.flops for one in found.experts)
    assert found.points == (Point("prediction", 4, (8, 8), aggregated=True),)
    assert found.aggregator == "mean (points all, weights (2.0, 1.0, 1.0))"
    learned = describe(together(experts, "sabw", preset="tiny"))
    assert learned.ensemble_flops > found.ensemble_flops
    assert learned.aggregator_parameters > 0


def test_the_command_line_describes_either_source(sources: tuple[str, str], saved: Path) -> None:
    for arguments in ([*sources, "--level", "output"], [str(saved)]):
        done = CliRunner().invoke(app, ["describe", *arguments], env={"COLUMNS": "200"})
        assert done.exit_code == 0, done.output
        assert all(text in done.output for text in ("noise", "velocity", "prediction", "x the first expert"))


def test_lengths_of_prompts_are_the_experts_own_in_training() -> None:
    settings: dict[str, Any] = {"experts": "zoo:topics", "data": {"path": "data"}, "output": "out"}
    with pytest.raises(ValueError, match="leave text_tokens out"):
        TrainConfig.model_validate({**settings, "level": "output", "text_tokens": 128})


def test_it_is_evaluated_beside_others(sources: tuple[str, str], saved: Path) -> None:
    config = EvaluateConfig(experts=sources[0], ensemble=None, systems=(f"ensemble:{saved}",))
    ensemble = open_evaluated(config, torch.device("cpu"), torch.float32)
    (system,) = choose_systems(config, ensemble).systems
    assert isinstance(system.pipeline.unet, OutputEnsembleDenoiser)
    with pytest.raises(ValueError, match=r"meet at the output.*experts=\[.*noise\] systems=\[noise,ensemble:"):
        open_evaluated(EvaluateConfig(ensemble=str(saved)), torch.device("cpu"), torch.float32)
