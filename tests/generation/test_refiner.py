"""SDXL's two stages as two ensembles, from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from diffusemble import load_experts
from diffusemble.adapters.two_stages import refiner_pipeline
from diffusemble.app.cli import app
from diffusemble.app.flags import refiner_of
from diffusemble.config.generate import GenerateConfig
from diffusemble.generation import generate
from diffusemble.samplers import build_scheduler
from diffusemble.settings import load_config
from stock import small_pipeline, small_sdxl
from tiny import tiny_refiner, tiny_scheduler
from tiny_ensembles import different


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("stages")
    for seed in range(2):
        small_sdxl(seed).save_pretrained(home / f"base{seed}")
        tiny_refiner(seed).save_pretrained(home / f"refiner{seed}")
    return home


def config_of(home: Path, **refiner: Any) -> GenerateConfig:
    return GenerateConfig(
        prompts=["a fox"],
        negative="dull",
        seeds=[3],
        steps=3,
        guidance=4.0,
        device="cpu",
        experts=[str(home / f"base{seed}") for seed in range(2)],
        refiner={"experts": [str(home / f"refiner{seed}") for seed in range(2)], "start": 0.6, **refiner},
    )


def test_refiners_may_meet_at_the_output(home: Path) -> None:
    """The mean of what they predict is the mean of the last block's features."""
    last = {"name": "mean", "options": {"points": "last"}}
    block, output = (
        np.asarray(generate(config_of(home, **how)).pictures[0].image).astype(int)
        for how in ({"aggregator": last}, {"level": "output"})
    )
    assert np.abs(block - output).max() <= 1


def test_two_stages_from_the_command_line_are_those_by_hand(home: Path, tmp_path: Path) -> None:
    stages = [f"--{kind}={home / name}{seed}" for kind, name in STAGES for seed in range(2)]
    options = ["--negative=dull", "--seed=3", "--steps=3", "--guidance=4", "--refine-from=0.6", "--set=device=cpu"]
    run = CliRunner().invoke(app, ["generate", "a fox", *stages, *options, f"--out={tmp_path}"])
    assert run.exit_code == 0, run.output
    (file,) = tmp_path.glob("*.png")
    ours = np.asarray(Image.open(file))

    first = different([small_sdxl(seed) for seed in range(2)]).pipeline()
    second = different([tiny_refiner(seed) for seed in range(2)]).pipeline()
    call = {"prompt": ["a fox"], "negative_prompt": ["dull"], "num_inference_steps": 3, "guidance_scale": 4.0}
    for pipeline in (first, second):
        pipeline.scheduler = build_scheduler("ddim", pipeline.scheduler.config)
        pipeline.set_progress_bar_config(disable=True)
    generator = [torch.Generator("cpu").manual_seed(3)]
    latents = first(**call, generator=generator, denoising_end=0.6, output_type="latent").images
    expected = second(**call, image=latents, denoising_start=0.6).images[0]
    assert np.abs(ours.astype(int) - np.asarray(expected).astype(int)).max() <= 1
    again = generate(load_config(GenerateConfig, file, ["refiner.aesthetic_score=2"])).pictures[0].image
    assert again.tobytes() != Image.open(file).tobytes()


STAGES = (("experts", "base"), ("refiner-experts", "refiner"))


def test_bases_of_the_command_line_are_those_of_both_stages() -> None:
    assert refiner_of(["a.safetensors"], 0.7, ["xl", "b"]) == {
        "experts": ["a.safetensors"],
        "base": ["xl", "b"],
        "start": 0.7,
    }
    assert refiner_of(["a"], None, None) == {"experts": ["a"]}


def test_every_step_is_told_once_and_both_stages_are_recorded(home: Path) -> None:
    shares: list[float] = []
    drawn = generate(config_of(home), lambda share, what: shares.append(share))
    assert shares == pytest.approx([0.0, 1 / 3, 2 / 3, 1.0])
    made = drawn.config.made_with
    assert made is not None
    assert [expert.name for expert in made.experts] == ["base0", "base1", "refiner0", "refiner1"]


def test_refiners_of_another_kind_are_refused() -> None:
    base, first = small_sdxl(0), small_pipeline(0)
    with pytest.raises(ValueError, match=r"StableDiffusionPipeline always draws to the end\. Two stages are for SDXL"):
        refiner_pipeline(different([tiny_refiner(0)]), first)
    with pytest.raises(
        ValueError, match=r"drawn by refiners of SDXL or by SDXL models, and 'expert 0' is neither \(its"
    ):
        refiner_pipeline(different([small_pipeline(0)]), base)
    refiner = tiny_refiner(0)
    refiner.register_modules(scheduler=tiny_scheduler(beta_end=0.02))
    with pytest.raises(ValueError, match="trained with another noise schedule than those of the first stage"):
        refiner_pipeline(different([refiner]), base)
    refiner = tiny_refiner(0)
    refiner.vae.register_to_config(scaling_factor=0.5)
    with pytest.raises(ValueError, match=r"refiner: its experts' latents are .*0\.5.* Use refiners of the same"):
        refiner_pipeline(different([refiner]), base)


def test_refiners_draw_nothing_from_text_alone(home: Path) -> None:
    alone = GenerateConfig(prompts=["a fox"], experts=[str(home / "refiner0")], device="cpu")
    with pytest.raises(ValueError, match=r"belong to StableDiffusionXLImg2ImgPipeline\. Refiners are the second stage"):
        generate(alone)


def test_a_refiner_reads_with_its_own_encoders(home: Path) -> None:
    experts = load_experts([str(home / "refiner0"), str(home / "refiner1")])
    assert all("text_encoder" not in expert.components for expert in experts)
    assert len({id(expert.components["text_encoder_2"]) for expert in experts}) == 2
    assert experts[0].components["requires_aesthetics_score"]


@pytest.mark.parametrize(
    ("refiner", "more", "message"),
    [
        ({"start": 0.8}, {}, "a refiner needs 'experts' or 'ensemble': the zoo has none"),
        ({"experts": ["r"], "start": 1.2}, {}, r"refiner\.start .* got 1\.2"),
        ({"experts": ["r"]}, {"guidance_interval": [0, 0.5]}, "guidance_interval knows one stage only"),
        ({"experts": ["r"]}, {"attention": True}, "attention knows one stage only"),
    ],
)
def test_keys_that_do_not_go_together_are_named(refiner: Any, more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(GenerateConfig, None, (), prompts=["a fox"], refiner=refiner, **more)


def test_a_share_without_refiners_is_refused() -> None:
    run = CliRunner().invoke(app, ["generate", "a fox", "--refine-from=0.7"])
    assert run.exit_code != 0
    assert "--refine-from needs refiners" in f"{run.output}{run.exception}"
