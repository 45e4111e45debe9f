"""What an expert is, and which experts can be aggregated block by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from torch import nn

# Entries of a denoiser's configuration that may differ between experts of one ensemble.
_FREE_CONFIG = {"sample_size", "upcast_attention", "use_linear_projection", "attention_type"}
_SCHEDULE = ("prediction_type", "num_train_timesteps", "beta_schedule", "beta_start", "beta_end")
_LATENTS = ("latent_channels", "scaling_factor", "shift_factor")


@dataclass(frozen=True)
class Expert:
    """One frozen text-to-image model.

    Attributes:
        name: short name, unique within an ensemble.
        denoiser: its U-Net or transformer.
        components: the other parts of its pipeline by diffusers' names (``vae``, ``text_encoder``, ``tokenizer``,
            ``scheduler``, ...), and its settings (``requires_aesthetics_score``, ...); empty for a bare denoiser.
        pipeline_class: the diffusers pipeline it belongs to.
        source: what it was loaded from: a folder, a hub id (``"org/name@commit"``), a file, ``"zoo:name"``.
        files: SHA-256 of the weight files of the denoiser and text encoders, by path relative to the source.
        base: for a single file, the folder or hub id that gave its configuration and missing parts.
    """

    name: str
    denoiser: nn.Module
    components: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    pipeline_class: type | None = None
    source: str | None = None
    files: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    base: str | None = None


def as_experts(experts: Sequence[Expert | nn.Module]) -> tuple[Expert, ...]:
    """Experts as they are, bare denoisers named ``expert 1``, ``expert 2``, ...

    Raises:
        ValueError: the sequence is empty or two experts share a name.
    """
    named = tuple(
        expert if isinstance(expert, Expert) else Expert(f"expert {number}", expert)
        for number, expert in enumerate(experts, start=1)
    )
    if not named:
        raise ValueError("An ensemble needs at least one expert; got none. Give one or more denoisers or experts.")
    names = [expert.name for expert in named]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"Two experts are called {name!r}. Give every expert of an ensemble its own name.")
    return named


def check_block_level(experts: Sequence[Expert]) -> None:
    """Make sure the experts can run in lockstep: one architecture, one latent space, one noise schedule.

    Raises:
        ValueError: names the expert, the property, both values, and what would work.
    """
    first = experts[0]
    for number, expert in enumerate(experts[1:], start=2):
        for what, mine, other in _properties(expert, first):
            if mine != other:
                raise ValueError(
                    f"Expert {number} ({expert.name!r}): {what} is {mine!r}, but expert 1 ({first.name!r}) has "
                    f"{other!r}. Block-wise aggregation needs {_remedy(what)}."
                )


def _properties(expert: Expert, first: Expert) -> list[tuple[str, Any, Any]]:
    rows = [("denoiser class", type(expert.denoiser).__name__, type(first.denoiser).__name__)]
    mine, other = _config(expert.denoiser), _config(first.denoiser)
    for key in sorted(mine.keys() | other.keys()):
        if not key.startswith("_") and key not in _FREE_CONFIG:
            rows.append((f"denoiser {key}", _plain(mine.get(key)), _plain(other.get(key))))
    for part, keys in (("scheduler", _SCHEDULE), ("vae", _LATENTS)):
        if part in expert.components and part in first.components:
            a, b = _config(expert.components[part]), _config(first.components[part])
            rows += [(f"{part} {key}", a.get(key), b.get(key)) for key in keys]
    return rows


def _config(part: Any) -> Mapping[str, Any]:
    return getattr(part, "config", {})


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _remedy(what: str) -> str:
    if what.startswith("vae"):
        return "experts whose latents mean the same; use experts that share a VAE's latent space"
    if what.startswith("scheduler"):
        return "one noise schedule and prediction type; use experts fine-tuned from one base model"
    return "experts of one architecture; use checkpoints fine-tuned from the same base model (SD 1.5 with SD 1.5, ...)"
