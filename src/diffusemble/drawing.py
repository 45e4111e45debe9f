"""An ensemble inside diffusers' own pipeline and sampler: prompts and seeds in, pictures out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from diffusemble.adapters.install import acting, adapted_pipeline, adapter_call
from diffusemble.adapters.two_stages import in_two_stages, refiner_pipeline
from diffusemble.aggregators.recording import AttentionMaps, record_attention
from diffusemble.calls import check_draws_from_text, guidance_of, is_z_image, known, longest_prompt
from diffusemble.config.generate import GenerateConfig
from diffusemble.config.schema import nearest
from diffusemble.ensembles.base import Ensemble
from diffusemble.pictures.attention import PointMaps
from diffusemble.samplers import use_sampler

DEFAULT_POINTS = DEFAULT_STEPS = 6

Tell = Callable[[float], None]
"""Called with the share that is done, 0 to 1."""


@dataclass(frozen=True)
class Picture:
    """One drawing, with the aggregator's maps if they were asked for: a row per point, one map per chosen step."""

    image: Image.Image
    prompt: str
    seed: int
    maps: tuple[PointMaps, ...] = ()


@dataclass(frozen=True)
class MapChoice:
    """Which maps to keep: points by index in running order, with their names; steps from 1."""

    points: Mapping[int, str]
    steps: tuple[int, ...]


@dataclass(frozen=True)
class Stages:
    """An ensemble, the pipeline around it, and the one that draws the last steps if there is one."""

    ensemble: Ensemble
    first: Any
    second: Any | None = None


def draw(
    ensemble: Ensemble,
    config: GenerateConfig,
    choice: MapChoice | None = None,
    tell: Tell = lambda share: None,
    refiner: Ensemble | None = None,
) -> tuple[Picture, ...]:
    """Draw every prompt with every seed.

    Each picture starts from a CPU generator of its own, so that it does not depend on its batch or on the device's
    random numbers.

    Args:
        ensemble: what draws.
        config: what to draw.
        choice: maps to keep with the pictures.
        tell: called after every step with the share that is done.
        refiner: what draws the last steps, from ``config.refiner.start`` on.

    Returns:
        Pictures prompt by prompt, and seed by seed within a prompt.
    """
    pipeline = install(ensemble, config)
    second = None if refiner is None else refiner_pipeline(refiner, pipeline)
    return draw_by(Stages(ensemble, pipeline, second), config, choice, tell)


def draw_by(
    stages: Stages, config: GenerateConfig, choice: MapChoice | None = None, tell: Tell = lambda share: None
) -> tuple[Picture, ...]:
    """``draw`` with pipelines that are there already."""
    jobs = [(prompt, seed) for prompt in config.prompts for seed in config.seeds]
    pictures: list[Picture] = []
    for start in range(0, len(jobs), config.batch):
        part = jobs[start : start + config.batch]

        def report(share: float, done: int = start, size: int = len(part)) -> None:
            tell((done + share * size) / len(jobs))

        with record_attention(stages.ensemble) if choice else nullcontext() as maps:
            images = _run(stages, part, config, report)
        prompts = slice(len(part)) if is_z_image(stages.first) else slice(-len(part), None)  # guidance asks for more
        kept = _keep(maps, choice, prompts, config) if maps and choice else [()] * len(part)
        pictures += [Picture(image, *job, maps=own) for image, job, own in zip(images, part, kept, strict=True)]
    return tuple(pictures)


def placement(device: str, dtype: str) -> tuple[torch.device, torch.dtype]:
    """Device and number type of a configuration; ``"auto"`` is the fastest device there is, and half precision but on
    a CPU.

    Raises:
        ValueError: there is no such device.
    """
    where = _present(best_device() if device == "auto" else device)
    automatic = "float32" if where.type == "cpu" else "float16"
    chosen: torch.dtype = getattr(torch, automatic if dtype == "auto" else dtype)
    return where, chosen


def _present(name: str) -> torch.device:
    try:
        where = torch.device(name)
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        there += ["mps"] if torch.backends.mps.is_available() else []
        raise ValueError(
            f"device: PyTorch finds no device {name!r} here, but {', '.join(there)}. Leave `device` out for the "
            f"fastest one. For a GPU that is not found, install the PyTorch that was built for it."
        ) from error
    return where


def best_device() -> str:
    """The fastest device there is."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def install(ensemble: Ensemble, config: GenerateConfig, parts: Mapping[str, Any] | None = None) -> Any:
    """A diffusers pipeline around the ensemble, with the sampler and the adapters of a configuration; ``parts`` is what
    ``adapter_parts`` loaded, if it has been done.
    """
    check_draws_from_text(ensemble)
    pipeline = adapted_pipeline(ensemble, config, parts)
    use_sampler(pipeline, config.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def choose_maps(ensemble: Ensemble, config: GenerateConfig) -> MapChoice | None:
    """What ``config.attention`` asks for, or a spread over all points and steps.

    Raises:
        ValueError: a point that this ensemble does not have or does not aggregate, or a step beyond the last.
    """
    if config.attention is None:
        return None
    there = {ensemble.points[index]: index for index in sorted(ensemble.aggregator.points)}
    for name in config.attention.points:
        if name not in there:
            raise ValueError(
                f"attention.points: this ensemble aggregates at no point {name!r}{nearest(name, there)}. Its points: "
                f"{', '.join(there)}."
            )
    for step in config.attention.steps:
        if step > config.steps:
            raise ValueError(f"attention.steps: there is no step {step}; the picture is drawn in {config.steps} steps.")
    names = config.attention.points or _spread(list(there), DEFAULT_POINTS)
    steps = config.attention.steps or _spread(range(1, config.steps + 1), DEFAULT_STEPS)
    return MapChoice({there[name]: name for name in names}, tuple(steps))


# -- parts of the above ------------------------------------------------------------------------------------------------


def _run(stages: Stages, jobs: Sequence[tuple[str, int]], config: GenerateConfig, report: Tell) -> Any:
    """One batch of pictures, by a pipeline and perhaps another that refines what it drew."""

    def step_done(pipe: Any, index: int, time: Any, state: dict[str, Any]) -> dict[str, Any]:
        report(min(1.0, (index + 1) / config.steps))  # PNDM evaluates once more than it steps
        return state

    def told(index: int, time: Any, latents: Tensor) -> None:
        step_done(None, index, time, {})

    pipeline, refiner = stages.first, stages.second
    call = {
        "prompt": [prompt for prompt, _ in jobs],
        "generator": [torch.Generator("cpu").manual_seed(seed) for _, seed in jobs],
        "num_inference_steps": config.steps,
        "height": config.height,
        "width": config.width,
        # PixArt's and T2I-adapters' pipelines know diffusers' first callback only. PixArt has sizes of its own.
        **known(pipeline, {"callback_on_step_end": step_done, "use_resolution_binning": False, "callback": told}),
        **guidance_of(pipeline, config.guidance, [config.negative] * len(jobs)),
        **longest_prompt(pipeline),
        **adapter_call(pipeline, config, len(jobs)),
    }
    with acting(pipeline, config):
        if refiner is not None and config.refiner is not None:
            return in_two_stages(pipeline, refiner, call, config.refiner, step_done)
        return pipeline(**call).images


def _keep(maps: AttentionMaps, choice: MapChoice, rows: slice, config: GenerateConfig) -> list[tuple[PointMaps, ...]]:
    def at(point: int, step: int) -> Tensor:
        # PNDM evaluates its second time twice; FLUX's guidance calls for the negative prompt after the prompt's call.
        calls, extra = divmod(len(maps[point]), config.steps)
        return maps[point][0 if step == 1 else (step - 1) * calls + extra][rows]

    def of(image: int) -> Iterator[PointMaps]:
        for point, name in choice.points.items():
            yield PointMaps(name, choice.steps, tuple(at(point, step)[image] for step in choice.steps))

    return [tuple(of(image)) for image in range(rows.stop or -rows.start)]


def _spread(values: Sequence[Any], count: int) -> list[Any]:
    count = min(count, len(values))
    return [values[round(index * (len(values) - 1) / max(1, count - 1))] for index in range(count)]
