"""Two real experts of every family, small as they are, train through the public door, and their loss falls."""

from __future__ import annotations

import inspect
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file

import training.families as families
from diffusemble.aggregators import load_aggregator
from diffusemble.ensembles.block_level import EnsembleDenoiser
from diffusemble.experts.load import load_experts
from diffusemble.training.config import TrainConfig
from diffusemble.training.corpus import encode_corpus
from diffusemble.training.learner import Learner
from diffusemble.training.log import read_log
from diffusemble.training.objective import prediction_error
from diffusemble.training.place import place
from diffusemble.training.schedule import diffusion_of
from diffusemble.training.train import build_ensemble, train
from training.families import FILES, PIPELINES, experts_of, save_experts
from training.small import same_log, small_config, stop_at

pytestmark = pytest.mark.slow
NEW = ("sdxl", "flux", "sd3")
CPU = torch.device("cpu")


def family_config(pictures: Path, output: Path, **changes: Any) -> TrainConfig:
    held_out = {"path": str(pictures), "where": {"split": "held"}, "count": 4, "buckets": 4, "every": 6}
    return small_config(pictures, output, **{"steps": 12, "rate": 2e-2, "held_out": held_out, **changes})


def measured(folder: Path) -> list[float]:
    return [row["held_out"] for row in read_log(folder) if "held_out" in row]


@pytest.fixture(scope="session")
def whole_of(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A run of a family that nobody interrupted."""
    root = tmp_path_factory.mktemp("families")
    return cache(lambda family: train(family_config(pictures, root / family), experts_of(family)))


@pytest.mark.parametrize("family", PIPELINES)
def test_the_held_out_loss_falls(whole_of: Callable[[str], Path], family: str) -> None:
    first, _, last = measured(whole_of(family))
    assert last < 0.8 * first


@pytest.mark.parametrize("family", NEW)
def test_a_run_that_was_stopped_goes_on_bit_for_bit(
    pictures: Path, tmp_path: Path, whole_of: Callable[[str], Path], family: str
) -> None:
    config = family_config(pictures, tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        train(config, experts_of(family), stop_at(7))  # one step after the last checkpoint
    train(config, experts_of(family))
    assert same_log(tmp_path / "run") == same_log(whole_of(family))
    one, other = (load_file(folder / "aggregator.safetensors") for folder in (tmp_path / "run", whole_of(family)))
    assert all(torch.equal(one[name], other[name]) for name in other)


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    yield Accelerator()
    AcceleratorState._reset_state()  # the next run has another precision
    GradientState._reset_state()


@pytest.mark.parametrize("family", NEW)
def test_parts_and_checkpointing_change_memory_alone(
    pictures: Path, tmp_path: Path, accelerator: Accelerator, family: str
) -> None:
    """Half a batch at a time, and activations computed twice, but the same gradient from less that is kept."""
    found = []
    for changes in ({}, {"gradient_checkpointing": True}, {"accumulate": 2}):
        config = family_config(pictures, tmp_path, **changes)
        ensemble = build_ensemble(config, experts_of(family))
        place(ensemble, config, CPU)
        corpus = encode_corpus(config.data, config, ensemble, lambda *_: None)
        diffusion = diffusion_of(ensemble.experts, CPU, corpus.feed.image_tokens(*corpus.shape[1:]))
        run = Learner(config, ensemble, accelerator, corpus, diffusion, lambda _: prediction_error)
        with torch.no_grad():
            for weight in run.weights:  # at first the last layers are zero, and nothing before them has a gradient
                weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())))
        kept, gradients = [0], list[torch.Tensor]()

        def count(tensor: torch.Tensor, kept: list[int] = kept) -> torch.Tensor:
            kept[0] += tensor.nbytes
            return tensor

        run.optimizer.register_step_pre_hook(
            lambda *_, run=run, found=gradients: found.extend(weight.grad.clone() for weight in run.weights)
        )
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            taken = run.advance(0)
        found.append((taken.loss, torch.cat([gradient.flatten() for gradient in gradients]), kept[0]))
    for loss, gradient, _ in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        assert torch.allclose(gradient, found[0][1], atol=1e-5)
    assert found[0][1].abs().max() > 1e-3
    assert found[1][2] < 0.5 * found[0][2]


@pytest.mark.parametrize("family", NEW)
def test_experts_in_half_the_bytes_train_an_exact_aggregator(
    pictures: Path, tmp_path: Path, whole_of: Callable[[str], Path], family: str
) -> None:
    experts, samples = experts_of(family), {"prompts": "picture 0", "steps": 2, "guidance": 3, "every": 2}
    config = family_config(pictures, tmp_path / "run", precision="bf16", steps=2, samples=samples)
    train(config, experts)
    assert experts[0].denoiser.dtype == torch.bfloat16
    assert experts[0].components["vae"].dtype == torch.float32
    weights = load_file(tmp_path / "run" / "aggregator.safetensors")
    assert all(weight.dtype == torch.float32 for weight in weights.values())
    for mine, exact in zip(read_log(tmp_path / "run")[:3], read_log(whole_of(family))[:3], strict=True):
        for name in {"loss", "held_out"} & mine.keys():
            assert mine[name] == pytest.approx(exact[name], rel=0.05)
    assert (tmp_path / "run" / "sheets" / "step-000002.png").is_file()


@pytest.mark.parametrize("family", FILES)
def test_from_single_files_to_pictures(pictures: Path, tmp_path: Path, family: str) -> None:
    """Load, train, save, load, draw: the same picture, as often as one likes."""
    files, base = save_experts(family, tmp_path / "models")
    folder = train(family_config(pictures, tmp_path / "run", experts=files, base=base, steps=10, held_out=None))
    opened = EnsembleDenoiser.from_pretrained(folder)
    opened.save_pretrained(tmp_path / "copy")
    again = EnsembleDenoiser.from_pretrained(tmp_path / "copy")
    experts = load_experts(files, base=base)
    built = EnsembleDenoiser(experts, load_aggregator(folder / "aggregator.safetensors"))
    drawn = [picture_of(ensemble.eval()) for ensemble in (opened, again, built)]
    assert all(np.array_equal(one, drawn[0]) for one in drawn[1:])
    assert not np.array_equal(picture_of(EnsembleDenoiser(experts, "mean")), drawn[0])


def picture_of(ensemble: EnsembleDenoiser) -> np.ndarray:
    pipeline = ensemble.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    given: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "np"}
    if "strength" in inspect.signature(pipeline.__call__).parameters:
        given |= {"image": torch.full((1, 3, 16, 16), 0.5), "strength": 1.0}
    else:
        given |= {"height": 16, "width": 16}
    return pipeline(prompt="picture 3", generator=torch.Generator().manual_seed(0), **given).images[0]


def test_two_processes_learn_what_one_learns(pictures: Path, tmp_path: Path, whole_of: Callable[[str], Path]) -> None:
    shutil.copytree(pictures, tmp_path / "pictures")
    config = family_config(tmp_path / "pictures", tmp_path / "run", accumulate=2)
    (tmp_path / "run.json").write_text(config.model_dump_json())
    tests = Path(families.__file__).parents[1]
    launcher = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1")
    more = ("--mixed_precision", "no", "--dynamo_backend", "no", families.__file__)
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(tests / "training"), str(tests)])}
    command = [sys.executable, *launcher, *more, str(tmp_path / "run.json"), "flux"]
    subprocess.run(command, env={**os.environ, **environment}, check=True, timeout=600)
    for mine, alone in zip(read_log(tmp_path / "run"), read_log(whole_of("flux")), strict=True):
        assert mine["step"] == alone["step"]
        for name in {"loss", "norm", "rate", "held_out"} & alone.keys():
            # Sums in another order: exact to rounding at first, and then as far as twelve steps carry it.
            assert mine[name] == pytest.approx(alone[name], rel=1e-5 if mine["step"] <= 1 else 1e-2), name
