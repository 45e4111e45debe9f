"""The scenes' base: the zoo's U-Net taught to draw several things at once, with full and with partial captions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn

from diffusemble.evaluation.scenes.scene import Scene
from recipes.zoo.loop import Plan, State, epoch_indices, step_generator, train
from recipes.zoo.pictures import write_sheet
from recipes.zoo.scenes.compose import options
from recipes.zoo.scenes.data import Scenes
from recipes.zoo.settings import DEVICE, WORK, plan_of
from recipes.zoo.unet import SNR_LIMIT, Parts, build_scheduler

DROP_ALL, KEEP = 0.1, 0.75  # the whole caption; each of colours, relation and style
SIZE_OF_HELD = 48  # scenes by which trainings are watched

Predict = Callable[[Tensor, Tensor, list[Scene], torch.Generator], Tensor]


def partial_caption(scene: Scene, generator: torch.Generator) -> str:
    """A caption with each part kept or left out by chance; now and then none at all."""
    draws = torch.rand(4, generator=generator).tolist()
    if draws[0] < DROP_ALL:
        return ""
    colours, relation, style = (draw < KEEP for draw in draws[1:])
    return scene.caption(colours=colours, relation=relation, style=style)


def noise_loss(data: Scenes, predict: Predict, plan: Plan) -> Callable[[int, torch.Generator], Tensor]:
    """The loss of one step: min-SNR weighted squared error of ``predict(noisy, times, scenes, generator)``."""
    cumulative = build_scheduler().alphas_cumprod
    weights = (cumulative / (1 - cumulative)).reciprocal().mul(SNR_LIMIT).clamp(max=1.0)

    def loss_at(step: int, generator: torch.Generator) -> Tensor:
        picked = epoch_indices(step, plan.batch, len(data.scenes), plan.seed)
        latents = data.latents[picked]
        noise = torch.randn(latents.shape, generator=generator)
        times = torch.randint(len(cumulative), (len(picked),), generator=generator)
        kept = cumulative[times].view(-1, 1, 1, 1)
        noisy = (kept.sqrt() * latents + (1 - kept).sqrt() * noise).to(DEVICE)
        scenes = [data.scenes[i] for i in picked.tolist()]
        predicted = predict(noisy, times.to(DEVICE), scenes, generator)
        errors = (predicted - noise.to(DEVICE)).square().mean(dim=(1, 2, 3))
        return (weights[times].to(DEVICE) * errors).mean()

    return loss_at


@torch.no_grad()
def held_errors(data: Scenes, predict: Predict, times: tuple[int, ...] = (150, 450, 750)) -> Tensor:
    """Squared noise errors `[n t]` on fixed times and noise, the same for every model."""
    cumulative, columns = build_scheduler().alphas_cumprod, []
    for time in times:
        noise = torch.randn(data.latents.shape, generator=step_generator(10_000, time))
        noisy = cumulative[time].sqrt() * data.latents + (1 - cumulative[time]).sqrt() * noise
        when = torch.full((len(noisy),), time)
        predicted = predict(noisy.to(DEVICE), when.to(DEVICE), data.scenes, step_generator(20_000, time))
        columns.append((predicted.cpu() - noise).square().mean(dim=(1, 2, 3)))
    return torch.stack(columns, dim=1)


def draw(
    pipe: StableDiffusionPipeline, captions: list[str], guidance: float = 4.0, first: int = 0, **inputs: Any
) -> Tensor:
    """Pictures `[n 3 h w]` in [-1, 1] of captions at the scenes' size, number i from seed `first` + i."""
    pipe.set_progress_bar_config(disable=True)
    side, numbers = options()["side"], range(first, first + len(captions))
    drawn = pipe(
        captions,
        height=side,
        width=side,
        guidance_scale=guidance,
        num_inference_steps=25,
        generator=[torch.Generator().manual_seed(number) for number in numbers],
        output_type="pt",
        **inputs,
    ).images
    return drawn.cpu() * 2 - 1  # type: ignore[no-any-return]


def watcher(name: str, held: Scenes, predict: Callable[[Any], Predict], work: Path) -> Callable[[State[Any]], None]:
    """Logs the held-out error at each checkpoint."""

    def watch(state: State[Any]) -> None:
        error = float(held_errors(held, predict(state.average)).mean())
        with (work / "training" / name / "held-out.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.step, "held_out": error}) + "\n")

    return watch


def some_held(work: Path, count: int = SIZE_OF_HELD) -> Scenes:
    """Held-out scenes at even distances."""
    held = Scenes.load(work, "held")
    picked = [i * len(held.scenes) // count for i in range(count)]
    return Scenes([held.scenes[i] for i in picked], held.latents[picked])


def make(work: Path = WORK) -> None:
    """Train the base of scenes and write `work/scenes/unet`."""
    target = work / "scenes/unet"
    if (target / "config.json").exists():
        return
    plan, parts, data = plan_of("scenes"), Parts.load(work), Scenes.load(work, "train")
    unet = UNet2DConditionModel.from_pretrained(work / "unet").to(DEVICE)

    def partial(model: nn.Module) -> Predict:
        return lambda noisy, times, scenes, generator: (
            model(noisy, times, parts.embed([partial_caption(scene, generator) for scene in scenes]).to(DEVICE)).sample
        )

    def full(model: nn.Module) -> Predict:
        return lambda noisy, times, scenes, generator: (
            model(noisy, times, parts.embed([scene.caption() for scene in scenes]).to(DEVICE)).sample
        )

    name = "scenes"
    average = train(unet, noise_loss(data, partial(unet), plan), plan, work / "training" / name,
                    watcher(name, some_held(work), full, work))  # fmt: skip
    average.save_pretrained(target)
    captions = [scene.caption() for scene in some_held(work, 24).scenes]
    write_sheet(list(draw(parts.pipeline(average.cpu()), captions).split(8)), work / "sheets/scenes.png", 2)
