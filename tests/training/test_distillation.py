from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from diffusemble.aggregators import load_aggregator
from diffusemble.ensembles.block_level import EnsembleDenoiser, build_aggregator
from diffusemble.experts.adapters import add_adapters
from diffusemble.experts.load import load_experts
from diffusemble.samplers import build_scheduler
from diffusemble.training.config import DistillConfig, RunConfig
from diffusemble.training.consistency import consistent, guided, huber_distance, jump_on_grid, solver_step
from diffusemble.training.corpus import encode_corpus
from diffusemble.training.distillation import consistency_objective, distill, without_prompts
from diffusemble.training.learner import Learner
from diffusemble.training.objective import add_noise
from diffusemble.training.place import place
from diffusemble.training.run import Progress
from diffusemble.training.schedule import diffusion_of
from tiny import randomised
from training.families import experts_of
from training.small import same_log, small_config, small_experts, stop_at


def distill_config(data: Path, output: Path, **changes: Any) -> DistillConfig:
    settings = small_config(data, output).model_dump(include=set(RunConfig.model_fields))
    own = {"ensemble": "made in code", "guidance": 2.0, "grid": 10, "ema": 0.5, "drop_prompt": 0.0}
    own |= {"steps": 4, "batch": 2, "save_every": 2, "held_out": None}
    return DistillConfig.model_validate({**settings, **own, **changes})


def small_ensemble() -> EnsembleDenoiser:
    """Two experts and an aggregator that is not at its start any more."""
    experts = small_experts()
    torch.manual_seed(7)
    aggregator = build_aggregator("sabw", [expert.denoiser for expert in experts], preset="tiny", points="levels")
    return EnsembleDenoiser(experts, randomised(aggregator, 7))


def distiller(data: Path, ensemble: EnsembleDenoiser | None = None, **changes: Any) -> Learner:
    config = distill_config(data, data.parent / "unused", **changes)
    ensemble = ensemble or small_ensemble()
    if config.lora:
        add_adapters(ensemble.denoisers, config.lora)
    place(ensemble, config, torch.device("cpu"))
    corpus = encode_corpus(config.data, config, ensemble, lambda *_: None)
    tokens = corpus.feed.image_tokens(*corpus.shape[1:])
    diffusion = diffusion_of(ensemble.experts, torch.device("cpu"), tokens)
    return Learner(config, ensemble, Accelerator(), corpus, diffusion, lambda one: consistency_objective(one, config))


@pytest.mark.parametrize("lora", [0, 2])
def test_gradients_reach_only_what_should_learn(pictures: Path, lora: int) -> None:
    run = distiller(pictures, lora=lora)
    before = {name: value.clone() for name, value in run.ensemble.state_dict().items()}
    for step in range(2):
        run.advance(step)
    changed = {name for name, value in run.ensemble.state_dict().items() if not torch.equal(value, before[name])}
    aggregator = {name for name in before if name.startswith("aggregator.")}
    adapters = {name for name in before if ".lora_" in name}
    assert changed == aggregator | adapters
    assert bool(adapters) == bool(lora)


def test_the_loss_is_that_of_three_separate_networks(pictures: Path) -> None:
    """Teacher, target and student share their experts in memory; here they are copies."""
    run = distiller(pictures, lora=2)
    teacher = copy.deepcopy(run.ensemble)
    for step in range(3):
        run.advance(step)
    assert run.average is not None
    student = copy.deepcopy(run.ensemble)
    with run.average.in_place():
        target = copy.deepcopy(run.ensemble)
    draw = run.chance.draw(9, run.corpus.shape)
    batch = run._batch(draw)
    jump = jump_on_grid(batch.timesteps, run.diffusion, 10)
    empty = run.corpus.inputs(draw.indices, torch.ones(len(draw.indices), dtype=torch.bool))
    noisy = add_noise(batch.latents, batch.noise, jump.start.level)
    with torch.no_grad():
        wanted = teacher(noisy, jump.start.times, **batch.inputs).sample
        without = teacher(noisy, jump.start.times, **empty).sample
        earlier = solver_step(guided(wanted, without, 2.0), noisy, jump, "epsilon")
        said = target(earlier, jump.end.times, **batch.inputs).sample
        aim = consistent(said, earlier, jump.end, "epsilon")
        own = student(noisy, jump.start.times, **batch.inputs).sample
        found = consistent(own, noisy, jump.start, "epsilon")
        loss = run.objective(run.denoise_with(run.ensemble), batch, run.diffusion)
    assert torch.allclose(loss, huber_distance(found, aim, 1e-3), rtol=1e-4)
    assert not torch.allclose(own, teacher(noisy, jump.start.times, **batch.inputs).sample, atol=1e-3)


def test_the_target_follows_the_student_exactly(pictures: Path) -> None:
    run = distiller(pictures, lora=2, ema=0.75)
    assert run.average is not None
    expected = [weight.detach().clone() for weight in run.weights]
    for step in range(3):
        run.advance(step)
        expected = [0.75 * one + 0.25 * weight.detach() for one, weight in zip(expected, run.weights, strict=True)]
    assert all(torch.allclose(*pair, atol=1e-6) for pair in zip(run.average.averages, expected, strict=True))


def test_the_half_without_a_prompt_keeps_sizes_and_length_of_its_own() -> None:
    """Of the refiner also a score that is not asked for; the empty prompt of Qwen-Image is a short one."""
    added = {"text_embeds": torch.ones(2, 3), "time_ids": torch.tensor([[9.0, 8, 1, 2, 7], [5, 6, 3, 4, 6.5]])}
    inputs = {"encoder_hidden_states": torch.ones(2, 6, 4), "added_cond_kwargs": added}
    none = {"text_embeds": torch.zeros(1, 3), "time_ids": torch.tensor([[1.0, 1, 0, 0, 2.5]])}
    found = without_prompts({"encoder_hidden_states": torch.zeros(1, 2, 4), "added_cond_kwargs": none}, inputs)
    assert torch.equal(found["encoder_hidden_states"], torch.zeros(2, 2, 4))
    assert torch.equal(found["added_cond_kwargs"]["text_embeds"], torch.zeros(2, 3))
    assert found["added_cond_kwargs"]["time_ids"].tolist() == [[9, 8, 1, 2, 2.5], [5, 6, 3, 4, 2.5]]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd2", "refiner", "flux", "flux2", "chroma", "qwen", "z-image", "sd3"])
def test_every_family_is_distilled(pictures: Path, tmp_path: Path, family: str) -> None:
    experts = experts_of(family)
    aggregator = build_aggregator("sabw", [expert.denoiser for expert in experts], preset="tiny")
    run = distiller(pictures, EnsembleDenoiser(experts, randomised(aggregator, 7)), ema=0.999, rate=1e-3)
    found = [run.advance(0).loss for _ in range(8)]
    assert found[-1] < 0.97 * found[0]
    ensemble = EnsembleDenoiser(experts, run.ensemble.aggregator)
    folder = distill(distill_config(pictures, tmp_path / "run", steps=2, held_out=None), ensemble)
    opened = EnsembleDenoiser(experts, load_aggregator(folder / "aggregator.safetensors")).eval()
    given: dict[str, Any] = {"height": 16, "width": 16}
    if family == "refiner":
        given = {"image": torch.full((1, 3, 16, 16), 0.5), "strength": 1.0}
    pipeline = opened.pipeline()
    pipeline.scheduler = build_scheduler("lcm", pipeline.scheduler.config)
    drawn = pipeline(prompt="a picture", num_inference_steps=2, guidance_scale=1.0, output_type="np", **given).images
    assert np.isfinite(drawn).all()


@pytest.mark.parametrize("family", ["sd1", "flux", "z-image", "sd3"])
def test_adapters_are_inside_the_blocks(family: str) -> None:
    denoiser = experts_of(family)[0].denoiser
    add_adapters([denoiser], rank=2)
    names = [name for name, module in denoiser.named_modules() if hasattr(module, "lora_A")]
    inside = ("down_blocks", "mid_block", "up_blocks", "transformer_blocks", "single_transformer_blocks", "layers")
    assert names
    assert {name.split(".")[0] for name in names} <= set(inside)


def test_without_an_average_the_student_is_its_own_target(pictures: Path) -> None:
    run = distiller(pictures, ema=0.0)
    assert run.average is None
    assert run.advance(0).loss > 0


@pytest.mark.parametrize("lora", [0, 4])
def test_the_loss_falls(pictures: Path, lora: int) -> None:
    """On one batch, with a target that hardly moves."""
    run = distiller(pictures, lora=lora, ema=0.999, rate=1e-4)
    found = [run.advance(0).loss for _ in range(8)]
    assert found[-1] < 0.95 * found[0]


def saved_ensemble(folder: Path) -> Path:
    """An ensemble on disk with its experts beside it."""
    for expert in small_experts():
        expert.pipeline_class(**expert.components, unet=expert.denoiser).save_pretrained(folder / expert.name)  # type: ignore[misc]
    experts = load_experts([folder / "expert 0", folder / "expert 1"])
    EnsembleDenoiser(experts, small_ensemble().aggregator).save_pretrained(folder / "ensemble")
    return folder / "ensemble"


def drawn(ensemble: EnsembleDenoiser) -> Any:
    pipeline = ensemble.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = build_scheduler("lcm", pipeline.scheduler.config)
    settings = {"num_inference_steps": 3, "guidance_scale": 1.0, "height": 16, "width": 16, "output_type": "pt"}
    return pipeline(prompt="a picture", generator=torch.Generator().manual_seed(0), **settings).images


@pytest.mark.parametrize(("lora", "keep"), [(0, "last"), (2, "last"), (2, "best")])
def test_what_is_saved_draws_alike_and_differs_from_the_teacher(
    pictures: Path, tmp_path: Path, lora: int, keep: str
) -> None:
    teacher = saved_ensemble(tmp_path)
    held_out = {"path": str(pictures), "count": 2, "buckets": 1, "every": 2} if keep == "best" else None
    config = distill_config(
        pictures, tmp_path / "run", ensemble=str(teacher), lora=lora, keep=keep, held_out=held_out, steps=2
    )
    before = drawn(EnsembleDenoiser.from_pretrained(teacher))
    folder = distill(config)
    assert len(list(folder.glob("lora-*.safetensors"))) == (2 if lora else 0)
    one, other = EnsembleDenoiser.from_pretrained(folder), EnsembleDenoiser.from_pretrained(folder)
    assert not any(weight.requires_grad for weight in one.denoisers.parameters())
    assert torch.equal(drawn(one), drawn(other))
    if keep == "last":
        assert not torch.allclose(drawn(one), before, atol=1e-4)
    else:
        assert torch.equal(drawn(one), drawn(EnsembleDenoiser.from_pretrained(folder / "best")))


def test_a_saved_ensemble_is_the_one_in_memory(pictures: Path, tmp_path: Path) -> None:
    ensemble = EnsembleDenoiser.from_pretrained(saved_ensemble(tmp_path))
    config = distill_config(pictures, tmp_path / "run", lora=2, ema=0.0, steps=2)
    distill(config, ensemble)
    assert torch.allclose(drawn(ensemble), drawn(EnsembleDenoiser.from_pretrained(tmp_path / "run")), atol=1e-6)


@pytest.mark.parametrize("lora", [0, 2])
def test_a_distillation_that_was_stopped_goes_on_bit_for_bit(pictures: Path, tmp_path: Path, lora: int) -> None:
    for name in ("stopped", "whole"):
        config = distill_config(pictures, tmp_path / name, lora=lora)
        if name == "stopped":
            with pytest.raises(KeyboardInterrupt):
                distill(config, small_ensemble(), stop_at(3))  # one step after its checkpoint
        distill(config, small_ensemble())
    assert same_log(tmp_path / "stopped") == same_log(tmp_path / "whole")
    for file in ["aggregator.safetensors", *(["lora-0.safetensors", "lora-1.safetensors"] if lora else [])]:
        one, other = (load_file(tmp_path / name / file) for name in ("stopped", "whole"))
        assert all(torch.equal(one[name], other[name]) for name in other)


def test_another_teacher_does_not_go_on(pictures: Path, tmp_path: Path) -> None:
    distill(distill_config(pictures, tmp_path / "run", steps=1), small_ensemble())
    other = EnsembleDenoiser(small_experts(), build_aggregator("sabw", small_ensemble().denoisers, preset="tiny"))
    with pytest.raises(ValueError, match="was started with another teacher"):
        distill(distill_config(pictures, tmp_path / "run", steps=1), other)


def test_nothing_is_distilled_twice(pictures: Path, tmp_path: Path) -> None:
    ensemble = small_ensemble()
    add_adapters(ensemble.denoisers, 2)
    with pytest.raises(ValueError, match=r"have been distilled with LoRA already. Distil the ensemble that this one"):
        distill(distill_config(pictures, tmp_path, lora=2), ensemble)


@pytest.mark.parametrize(("damage", "message"), [(None, "is missing. Copy the whole"), (b"x", "has changed since")])
def test_a_damaged_adapter_is_named(tmp_path: Path, damage: bytes | None, message: str) -> None:
    ensemble = EnsembleDenoiser.from_pretrained(saved_ensemble(tmp_path))
    add_adapters(ensemble.denoisers, 2)
    ensemble.save_pretrained(tmp_path / "adapted")
    file = tmp_path / "adapted" / "lora-1.safetensors"
    file.unlink() if damage is None else file.write_bytes(damage)
    with pytest.raises(ValueError, match=f"The adapter .*lora-1.safetensors {message}"):
        EnsembleDenoiser.from_pretrained(tmp_path / "adapted")


def test_an_ensemble_that_the_zoo_does_not_ship_is_refused(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="The zoo ships no trained ensemble 'nothing'"):
        distill(distill_config(pictures, tmp_path, ensemble="zoo:nothing"))


def test_sheets_are_drawn_with_the_scheduler_of_few_steps(pictures: Path, tmp_path: Path) -> None:
    samples = {"prompts": "one", "steps": 2, "guidance": 1, "scheduler": "lcm"}
    told: list[Progress] = []
    distill(distill_config(pictures, tmp_path, steps=1, samples=samples), small_ensemble(), told.append)
    assert (tmp_path / "sheets" / "step-000001.png").is_file()
    assert told[-1].done == 1
