"""Packs the zoo for shipping: the base whole in float16, each expert as its difference from it in four bits."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffusemble.zoo import experts
from recipes.zoo.experts import Denoiser, load_expert
from recipes.zoo.pictures import read_rows
from recipes.zoo.settings import WORK
from recipes.zoo.unet import Corpus, Parts, held_out_errors


def shrink(base: dict[str, Tensor], expert: dict[str, Tensor]) -> dict[str, Tensor]:
    """The difference of two models: 15 levels for each number of a matrix, float16 for vectors (see `experts.restore`).

    The levels of a row are multiples of a seventh of its largest change. Singular vectors of the same size in bytes
    (rank 12) lost most of what makes an expert worse than another outside its topic; this keeps it.
    """
    delta = {}
    for key, weight in expert.items():
        if torch.equal(weight.half(), base[key].half()):
            continue
        if weight.ndim < 2:
            delta[key] = weight.half()
            continue
        change = (weight.double() - base[key].half().double()).flatten(1)
        step = (change.abs().amax(dim=1) / 7).half()
        levels = (change / step.double().clamp(min=1e-12)[:, None]).round().clamp(-7, 7).add(8).byte()
        levels = torch.nn.functional.pad(levels, (0, levels.shape[1] % 2), value=8)
        delta[f"{key}.levels"] = (levels[:, 0::2] | (levels[:, 1::2] << 4)).contiguous()
        delta[f"{key}.step"] = step
    return delta


def pack_base(work: Path, target: Path) -> None:
    """Write the base as a diffusers folder in float16."""
    parts = Parts.load(work)
    unet = UNet2DConditionModel.from_pretrained(work / "unet")
    for model in (parts.vae, parts.encoder, unet):
        model.half()
    shutil.rmtree(target, ignore_errors=True)
    parts.pipeline(unet).save_pretrained(target)
    for file in target.rglob("*.safetensors"):
        file.chmod(0o644)
    for config in target.rglob("config.json"):  # where it was trained is nobody's business
        kept = {k: v for k, v in json.loads(config.read_text(encoding="utf-8")).items() if k != "_name_or_path"}
        config.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    config = target / "text_encoder/config.json"  # transformers obeys the stored type, diffusers opens in float32
    config.write_text(config.read_text(encoding="utf-8").replace('"float16"', '"float32"'), encoding="utf-8")


def pair_error(model: Denoiser, parts: Parts, corpus: Corpus) -> float:
    """Mean held-out squared noise error."""
    own = replace(parts, encoder=model.text_encoder or parts.encoder)
    return float(held_out_errors(model.unet.eval(), corpus.with_texts(own.embed)).mean())


def pack_expert(name: str, work: Path, weights: Path, corpus: Corpus) -> dict[str, float]:
    """Write the packed parts of one expert; its held-out error before and after, and its size in bytes."""
    parts, folder, target = Parts.load(work), work / "experts" / name, weights / "experts" / name
    target.mkdir(parents=True, exist_ok=True)
    for part, file in experts.PARTS.items():
        if (folder / file).exists():
            delta = shrink(load_file(weights / "base" / file), load_file(folder / file))
            save_file(delta, target / f"{part}.safetensors", metadata={"format": "pt"})
            (target / f"{part}.safetensors").chmod(0o644)
    with tempfile.TemporaryDirectory() as unpacked:
        experts.unpack(name, Path(unpacked) / name)
        after = pair_error(load_expert(Path(unpacked) / name), parts, corpus)
    size = sum(path.stat().st_size for path in target.iterdir())
    return {"before": pair_error(load_expert(folder), parts, corpus), "after": after, "bytes": size}


def make(work: Path = WORK, weights: Path = experts.WEIGHTS) -> None:
    """Write the shipped weights, and `work/pack.json` with the held-out loss before and after packing."""
    pack_base(work, weights / "base")
    corpus = Corpus.load(Parts.load(work), [row for row in read_rows(work) if row["split"] == "pair"], work)
    report: dict[str, Any] = {name: pack_expert(name, work, weights, corpus) for name in experts.GROUNDS}
    (work / "pack.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
