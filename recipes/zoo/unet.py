"""The zoo's base: a U-Net of SD 1.x's blocks on 8 x 8 latents, trained on everything."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from recipes.zoo.loop import Plan, State, epoch_indices, step_generator, train
from recipes.zoo.pictures import read_pictures, read_rows, write_sheet
from recipes.zoo.settings import DEVICE, WORK, plan_of, settings
from recipes.zoo.text import tokens_of
from recipes.zoo.vae import encode

SNR_LIMIT = 5.0  # Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy", gamma = 5
DROP_ALL, DROP_STYLE = 0.1, 0.1
HELD_OUT_TIMES = (50, 150, 250, 350, 450, 550, 650, 750, 850, 950)


def build_scheduler() -> DDIMScheduler:
    """SD 1.x's schedule: noise prediction, scaled-linear betas."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def build(vae: AutoencoderKL, encoder: CLIPTextModel, model: dict[str, Any]) -> UNet2DConditionModel:
    """A U-Net for these latents and these embeddings."""
    channels = vae.config.latent_channels
    return UNet2DConditionModel(
        sample_size=vae.config.sample_size // 2 ** (len(vae.config.block_out_channels) - 1),
        in_channels=channels,
        out_channels=channels,
        cross_attention_dim=encoder.config.hidden_size,
        **model,
    )


@dataclass(frozen=True)
class Parts:
    """The frozen parts around the U-Net."""

    vae: AutoencoderKL
    encoder: CLIPTextModel
    tokenizer: CLIPTokenizer

    @classmethod
    def load(cls, work: Path) -> Parts:
        """The trained autoencoder, text encoder and tokenizer of a working folder."""
        vae = AutoencoderKL.from_pretrained(work / "vae").requires_grad_(False)
        encoder = CLIPTextModel.from_pretrained(work / "text_encoder").requires_grad_(False).eval()
        return cls(vae, encoder, CLIPTokenizer.from_pretrained(work / "tokenizer"))

    @torch.no_grad()
    def embed(self, captions: list[str]) -> Tensor:
        """Embeddings `[n s d]` as pipelines compute them: padded to the full length, no mask."""
        tokens = tokens_of(self.tokenizer, captions, "max_length")
        return torch.cat([self.encoder(part).last_hidden_state for part in tokens.split(256)])

    def pipeline(self, unet: UNet2DConditionModel) -> StableDiffusionPipeline:
        """A ready pipeline around a U-Net."""
        return StableDiffusionPipeline(
            self.vae, self.encoder, self.tokenizer, unet, build_scheduler(), None, None, requires_safety_checker=False
        )


@dataclass(frozen=True)
class Corpus:
    """Scaled latents and text embeddings of captioned pictures, all in memory.

    `full`, `bare` and `empty` stand for the caption, the caption without its style, and no caption: embeddings, or
    token numbers where the text encoder is trained too.
    """

    rows: list[dict[str, str]]
    latents: Tensor  # [n v c h w]: v variants of each picture, the first as it is
    full: Tensor  # [n s d] or [n s]
    bare: Tensor  # [n s d] or [n s]
    empty: Tensor  # [s d] or [s]

    @classmethod
    def load(cls, parts: Parts, rows: list[dict[str, str]], work: Path, variants: int = 1) -> Corpus:
        """Encode pictures and captions; variants beyond the first are shifted by up to three pixels."""
        pictures = read_pictures([work / "icons" / row["file_name"] for row in rows])
        found = [encode(parts.vae, shift(pictures, variant))[0] for variant in range(variants)]
        texts = [parts.embed([row[key] for row in rows]) for key in ("text", "concept")]
        latents = torch.stack(found, dim=1) * parts.vae.config.scaling_factor
        return cls(rows, latents, texts[0], texts[1], parts.embed([""])[0])

    def with_texts(self, encode: Callable[[list[str]], Tensor]) -> Corpus:
        """The same pictures with their captions encoded anew."""
        full, bare = (encode([row[key] for row in self.rows]) for key in ("text", "concept"))
        return replace(self, full=full, bare=bare, empty=encode([""])[0])

    def balanced(self, first: int) -> Corpus:
        """The first `first` rows repeated until they are at least half of all."""
        times = -(-(len(self.rows) - first) // first)
        order = [*range(first)] * times + [*range(first, len(self.rows))]
        picked = torch.tensor(order)
        rows = [self.rows[i] for i in order]
        return Corpus(rows, self.latents[picked], self.full[picked], self.bare[picked], self.empty)

    def text(self, picked: Tensor, generator: torch.Generator) -> Tensor:
        """Captions `[b s d]` or `[b s]` of a batch, the prompt or its style dropped for each sample by itself."""
        u = torch.rand(len(picked), generator=generator).view(-1, *(1,) * self.empty.ndim)
        chosen = torch.where(u < DROP_ALL + DROP_STYLE, self.bare[picked], self.full[picked])
        return torch.where(u < DROP_ALL, self.empty, chosen)

    def pictures(self, picked: Tensor, generator: torch.Generator) -> Tensor:
        """Latents `[b c h w]` of a batch: half as they are, half a random variant."""
        count = self.latents.shape[1]
        other = torch.randint(count, (len(picked),), generator=generator)
        plain = torch.rand(len(picked), generator=generator) < 0.5
        return self.latents[picked, torch.where(plain, 0, other)]


def shift(pictures: Tensor, variant: int, most: int = 3) -> Tensor:
    """Each picture moved by up to `most` pixels over white; variant 0 stays where it is."""
    if variant == 0:
        return pictures
    height, width = pictures.shape[2:]
    page = torch.nn.functional.pad(pictures, (most,) * 4, value=255)
    moves = torch.randint(2 * most + 1, (len(pictures), 2), generator=step_generator(variant, 0)).tolist()
    return torch.stack([p[:, y : y + height, x : x + width] for p, (y, x) in zip(page, moves, strict=True)])


def noise_loss(corpus: Corpus, unet: nn.Module, plan: Plan) -> Callable[[int, torch.Generator], Tensor]:
    """The loss of one step: min-SNR weighted squared error of the predicted noise."""
    cumulative = build_scheduler().alphas_cumprod
    weights = (cumulative / (1 - cumulative)).reciprocal().mul(SNR_LIMIT).clamp(max=1.0)  # min(snr, limit) / snr

    def loss_at(step: int, generator: torch.Generator) -> Tensor:
        picked = epoch_indices(step, plan.batch, len(corpus.rows), plan.seed)
        latents, text = corpus.pictures(picked, generator), corpus.text(picked, generator)
        noise = torch.randn(latents.shape, generator=generator)
        times = torch.randint(len(cumulative), (len(picked),), generator=generator)
        kept = cumulative[times].view(-1, 1, 1, 1)
        noisy = (kept.sqrt() * latents + (1 - kept).sqrt() * noise).to(DEVICE, memory_format=torch.channels_last)
        errors = (unet(noisy, times.to(DEVICE), text.to(DEVICE)).sample - noise.to(DEVICE)).square().mean(dim=(1, 2, 3))
        return (weights[times].to(DEVICE) * errors).mean()

    return loss_at


@torch.no_grad()
def held_out_errors(
    unet: UNet2DConditionModel, corpus: Corpus, draws: int = 1, times: tuple[int, ...] = HELD_OUT_TIMES
) -> Tensor:
    """Squared noise errors `[n t]` on fixed times and noise, the same for every model, so that models compare in pairs.

    Returns:
        For each picture and each of `times`, the mean over pixels and over `draws` noises.
    """
    cumulative, latents = build_scheduler().alphas_cumprod, corpus.latents[:, 0]
    errors = torch.zeros(len(latents), len(times))
    for column, time in enumerate(times):
        for draw in range(draws):
            noise = torch.randn(latents.shape, generator=step_generator(10_000 + draw, time))
            noisy = cumulative[time].sqrt() * latents + (1 - cumulative[time]).sqrt() * noise
            batches = zip(noisy.split(128), corpus.full.split(128), strict=True)
            predicted = torch.cat(
                [unet(x.to(unet.device), time, text.to(unet.device)).sample.cpu() for x, text in batches]
            )
            errors[:, column] += (predicted - noise).square().mean(dim=(1, 2, 3)) / draws
    return errors


def draw(pipe: StableDiffusionPipeline, captions: list[str], guidance: float = 5.0, steps: int = 25) -> Tensor:
    """Pictures `[n 3 h w]` in [-1, 1] of captions, number i from seed i."""
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(i) for i in range(len(captions))]
    found = pipe(captions, guidance_scale=guidance, num_inference_steps=steps, generator=generators, output_type="pt")
    drawn: Tensor = found.images.cpu() * 2 - 1
    return drawn


def spread(rows: list[dict[str, str]], count: int) -> list[dict[str, str]]:
    """`count` rows at even distances."""
    return [rows[i * len(rows) // count] for i in range(count)]


def watcher(parts: Parts, work: Path, rows: list[dict[str, str]], every: int = 4) -> Callable[[State[Any]], None]:
    """Logs the held-out loss at each checkpoint, and draws a sheet of seen and held-out captions at every fourth."""
    seen, pairs = ([row for row in rows if row["split"] == split] for split in ("train", "pair"))
    held, part = (Corpus.load(parts, rows, work) for rows in (pairs, spread(seen, len(pairs))))
    captions = [row["text"] for row in spread(seen, 24) + spread(pairs, 24)]
    saves = 0

    def watch(state: State[Any]) -> None:
        nonlocal saves
        losses = [float(held_out_errors(state.average, c, times=(150, 450, 750)).mean()) for c in (held, part)]
        row = {"step": state.step, "held_out": losses[0], "seen": losses[1]}
        with (work / "training/unet/held-out.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if saves % every == 0:
            drawn = draw(parts.pipeline(copy.deepcopy(state.average).cpu()), captions)
            write_sheet(list(drawn.split(12)), work / f"sheets/unet-{state.step:06d}.png", 2)
        saves += 1

    return watch


def make(work: Path = WORK) -> None:
    """Train the base and write `work/unet`."""
    if (work / "unet/config.json").exists():
        return
    plan, parts, rows = plan_of("unet"), Parts.load(work), read_rows(work)
    corpus = Corpus.load(parts, [row for row in rows if row["split"] == "train"], work, variants=4)
    torch.manual_seed(plan.seed)
    unet = build(parts.vae, parts.encoder, settings("unet")["model"]).to(DEVICE, memory_format=torch.channels_last)
    average = train(unet, noise_loss(corpus, unet, plan), plan, work / "training/unet", watcher(parts, work, rows))
    average.save_pretrained(work / "unet")
