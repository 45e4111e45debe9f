"""Aggregators on disk: one safetensors file whose header says what to build."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from diffusemble.aggregators.base import Combiner, CombinerOptions, Sizes
from diffusemble.config.schema import chosen
from diffusemble.registry import AGGREGATORS, lookup

HEADER_KEY = "diffusemble.aggregator"


def create(name: str, sizes: Sizes, options: dict[str, Any]) -> Combiner:
    """Build the aggregator ``name`` for the given sizes; ``options`` are those of its ``Options`` model.

    Raises:
        ValueError: there is no such aggregator or option, or an option has a value that it cannot have.
    """
    cls = lookup(AGGREGATORS, name, "aggregator")
    also = ["preset"] if cls.presets else []
    settings = chosen(cls.Options, options, f"Aggregator {name!r}", also)
    built: Combiner = cls(sizes, settings)
    return built


def name_of(aggregator: Combiner) -> str:
    """The aggregator's name in the table."""
    target = f"{type(aggregator).__module__}:{type(aggregator).__qualname__}"
    for name, entry in AGGREGATORS.items():
        if entry.target == target:
            return name
    raise ValueError(f"{target} is not in the table of aggregators. Add a row to diffusemble.registry.AGGREGATORS.")


def save_aggregator(aggregator: Combiner, file: str | Path) -> None:
    """Write weights and specification to one ``.safetensors`` file."""
    options: CombinerOptions = aggregator.options
    spec = {"name": name_of(aggregator), "sizes": asdict(aggregator.sizes), "options": options.model_dump()}
    weights = {key: value.detach().cpu().contiguous() for key, value in aggregator.state_dict().items()}
    # A safetensors file needs a tensor, and the mean has none.
    save_file(weights or {"empty": torch.zeros(1)}, str(file), metadata={HEADER_KEY: json.dumps(spec)})


def load_aggregator(file: str | Path, dtype: torch.dtype | None = None) -> Combiner:
    """Read what ``save_aggregator`` wrote.

    Raises:
        ValueError: the file is damaged, or is not an aggregator.
    """
    try:
        with safe_open(str(file), framework="pt") as opened:
            header = (opened.metadata() or {}).get(HEADER_KEY)
            weights = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise ValueError(f"{file} is not a readable safetensors file ({error}). Copy or train it again.") from error
    if header is None:
        raise ValueError(
            f"{file} holds no aggregator: its header has no {HEADER_KEY!r} entry. Give the file that "
            f"EnsembleDenoiser.save_pretrained or `diffusemble train` wrote."
        )
    spec = json.loads(header)
    sizes = Sizes(**{**spec["sizes"], "channels": tuple(spec["sizes"]["channels"])})
    aggregator = create(spec["name"], sizes, spec["options"])
    _fill(aggregator, {key: weights[key] for key in weights if key != "empty"}, file)
    return aggregator if dtype is None else aggregator.to(dtype)


def load_published(folder: str | Path) -> Combiner:
    """SABW from the layout of the AFA release: ``aggregator_{i}/config.json`` and ``aggregator.safetensors``.

    Raises:
        ValueError: the folder has no aggregators, or their sizes contradict each other.
    """
    folder = Path(folder)
    parts = sorted(folder.glob("aggregator_*"), key=lambda part: int(part.name.rsplit("_", 1)[1]))
    if not parts:
        raise ValueError(f"{folder} holds no aggregator_0, aggregator_1, ... folders. Give the release's folder.")
    for index, part in enumerate(parts):
        if part.name != f"aggregator_{index}":
            raise ValueError(f"{folder} holds {part.name} but no aggregator_{index}. Copy the whole release again.")
    configs = [json.loads((part / "config.json").read_text()) for part in parts]
    first = configs[0]
    for part, config in zip(parts, configs, strict=True):
        for key in sorted(first.keys() - {"in_channels"}):
            if config[key] != first[key]:
                raise ValueError(
                    f"{part}: {key} is {config[key]}, but aggregator_0 has {first[key]}. All aggregators of one "
                    f"ensemble share their sizes; give a folder that was written in one go."
                )
    sizes = Sizes(
        channels=tuple(config["in_channels"] for config in configs),
        time=first["temb_channels"],
        text=first["cross_attn_dim"],
        experts=first["num_experts"],
    )
    options = {"width": first["hidden_size"], "heads": first["num_attn_heads"], "layers": first["num_layers"]}
    aggregator = create("sabw", sizes, options)
    weights = {
        f"at.{index}.{key}": tensor.float()
        for index, part in enumerate(parts)
        for key, tensor in load_file(part / "aggregator.safetensors").items()
    }
    _fill(aggregator, weights, folder)
    return aggregator


def _fill(aggregator: Combiner, weights: dict[str, torch.Tensor], source: str | Path) -> None:
    expected = aggregator.state_dict()
    for key in sorted(expected.keys() ^ weights.keys()):
        problem = "is missing" if key in expected else "is unknown"
        raise ValueError(f"{source}: the tensor {key!r} {problem}. The file does not fit its own specification.")
    for key, tensor in weights.items():
        if tensor.shape != expected[key].shape:
            raise ValueError(
                f"{source}: {key!r} has the shape {tuple(tensor.shape)}, expected {tuple(expected[key].shape)}."
            )
    aggregator.load_state_dict(weights)
