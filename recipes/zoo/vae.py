"""The zoo's autoencoder: 64 x 64 pictures to 8 x 8 latents, trained with a loss that sees colour."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from recipes.zoo.data import SIZE, STYLES
from recipes.zoo.loop import State, epoch_indices, train
from recipes.zoo.pictures import read_pictures, read_rows, to_signed, write_sheet
from recipes.zoo.settings import DEVICE, WORK, plan_of, settings


def build(model: dict[str, Any]) -> AutoencoderKL:
    """An `AutoencoderKL` of SD 1.x's shape with one layer a block; the scaling factor is measured after training."""
    levels = len(model["block_out_channels"])
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        sample_size=SIZE,
        scaling_factor=1.0,
        **model,
    )


def edges(x: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of neighbouring pixels, down and across."""
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def picture_loss(drawn: Tensor, wanted: Tensor) -> Tensor:
    """L1 on RGB, on two opponent colours (red-green, yellow-blue), on 2-, 4- and 8-fold means and on edges.

    Plain L1 on small, mostly white pictures learns shapes in black, orange and blue first and leaves red and green out
    for a long time: the median of a doubtful colour is orange. The squares of coarse colours pull it out of there.
    """
    d = drawn - wanted
    red, green, blue = d.unbind(1)
    opponent = torch.stack([red - green, (red + green) / 2 - blue], dim=1)
    colour = opponent.abs().mean() + 3 * F.avg_pool2d(opponent, 4).square().mean()
    coarse = sum((F.avg_pool2d(d, k).abs().mean() for k in (2, 4, 8)), d.new_zeros(()))
    return d.abs().mean() + colour + 0.5 * coarse + 0.5 * sum(e.abs().mean() for e in edges(d))


def augment(x: Tensor, generator: torch.Generator, recolour: float = 0.5) -> Tensor:
    """Mirror half of the pictures and exchange the colour channels of a share `recolour` of them."""
    flip = torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5
    swap = torch.rand(len(x), 1, 1, 1, generator=generator) < recolour
    x = torch.where(flip, x.flip(3), x)
    return torch.where(swap, x[:, torch.randperm(3, generator=generator)], x)


def load_pictures(work: Path) -> tuple[Tensor, Tensor]:
    """The chosen training pictures, and all icons but the held-out ones; uint8."""
    rows = read_rows(work)
    held = {row["file_name"] for row in rows if row["split"] != "train"}
    chosen = [work / "data" / row["file_name"] for row in rows if row["split"] == "train"]
    folders = [work / "icons" / style.replace(" ", "-") for style in STYLES]
    every = [p for folder in folders for p in sorted(folder.glob("*.png")) if f"{folder.name}/{p.name}" not in held]
    return read_pictures(chosen), read_pictures(every)


def sheet_pictures(work: Path, count: int = 24) -> Tensor:
    """Held-out pictures for sheets, spread over topics and styles; float `[n 3 h w]`."""
    rows = [row for row in read_rows(work) if row["split"] == "pair"]
    picked = rows[:: max(1, len(rows) // count)][:count]
    return to_signed(read_pictures([work / "data" / row["file_name"] for row in picked]))


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, x: Tensor) -> Tensor:
    """Pictures through the latents' mean and back."""
    return vae.decode(vae.encode(x.to(vae.device)).latent_dist.mode()).sample.cpu()


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of unscaled latents of uint8 pictures."""
    found = [vae.encode(to_signed(part)).latent_dist for part in pictures.split(64)]
    return torch.cat([f.mean for f in found]), torch.cat([f.std for f in found])


def make(work: Path = WORK) -> None:
    """Train the autoencoder and write `work/vae`."""
    if (work / "vae/config.json").exists():
        return
    options, plan = settings("vae"), plan_of("vae")
    torch.manual_seed(plan.seed)
    vae = build(options["model"]).to(DEVICE, memory_format=torch.channels_last)
    chosen, every = load_pictures(work)
    sheet = sheet_pictures(work)

    def loss_at(step: int, generator: torch.Generator) -> Tensor:
        half = plan.batch // 2
        first = chosen[epoch_indices(step, plan.batch - half, len(chosen), plan.seed)]
        x = augment(to_signed(torch.cat([first, every[epoch_indices(step, half, len(every), plan.seed)]])), generator)
        x = x.to(DEVICE, memory_format=torch.channels_last)
        found = vae.encode(x).latent_dist
        latents = found.mean + found.std * torch.randn(found.mean.shape, generator=generator).to(DEVICE)
        return picture_loss(vae.decode(latents).sample, x) + options["kl"] * found.kl().mean() / found.mean[0].numel()

    def on_save(state: State[AutoencoderKL]) -> None:
        drawn = reconstruct(state.average, sheet)
        rows = [row for both in zip(sheet.split(12), drawn.split(12), strict=True) for row in both]
        write_sheet(rows, work / "sheets/vae.png", 2)

    average = train(vae, loss_at, plan, work / "training/vae", on_save).cpu()
    mean, std = encode(average, chosen)
    average.register_to_config(scaling_factor=float(1 / (mean.square() + std.square()).mean().sqrt()))
    average.save_pretrained(work / "vae")
