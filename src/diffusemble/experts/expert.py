"""What an expert is, and which experts can be aggregated block by block."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from diffusemble.experts.formats.families import family_of_config

# Entries of a denoiser's configuration that may differ between experts of one ensemble.
FREE_CONFIG = {"sample_size", "upcast_attention", "use_linear_projection", "attention_type"}
_SCHEDULE = (
    "prediction_type",
    "num_train_timesteps",
    "beta_schedule",
    "beta_start",
    "beta_end",
    "trained_betas",
    "rescale_betas_zero_snr",
)
_LATENTS = ("latent_channels", "scaling_factor", "shift_factor", "latents_mean", "latents_std")
_TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")


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
    components: Mapping[str, Any] = field(default_factory=dict)
    pipeline_class: type | None = None
    source: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
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
    refuse_equal([expert.name for expert in named])
    return named


def refuse_equal(names: Sequence[str]) -> None:
    """Raise if two experts share a name.

    Raises:
        ValueError: names the name.
    """
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"Two experts are called {name!r}. Give every expert of an ensemble its own name.")


def check_block_level(experts: Sequence[Expert]) -> None:
    """Make sure the experts can run in lockstep: one architecture, one latent space, one noise schedule.

    Raises:
        ValueError: names the expert, the property, both values, and what would work.
    """
    refuse_unlike(
        experts,
        lambda index: _properties(experts[index], experts[0]),
        lambda index, what: f"Block-wise aggregation needs {_remedy(what, _otherwise(experts[index], experts[0]))}.",
    )


def refuse_unlike(
    experts: Sequence[Expert],
    properties: Callable[[int], Iterable[tuple[str, Any, Any]]],
    remedy: Callable[[int, str], str],
) -> None:
    """Make sure that all experts are like the first.

    Args:
        experts: in order.
        properties: of the expert at an index: (what, its own, the first expert's).
        remedy: what would work, where the expert at an index differs in ``what``.

    Raises:
        ValueError: names the expert, the property, both values, and the remedy.
    """
    for index, expert in enumerate(experts[1:], start=1):
        for what, mine, other in properties(index):
            if mine != other:
                raise ValueError(
                    f"Expert {index + 1} ({expert.name!r}): {what} is {mine!r}, but expert 1 ({experts[0].name!r}) has "
                    f"{other!r}. {remedy(index, what)}"
                )


def _properties(expert: Expert, first: Expert) -> Iterator[tuple[str, Any, Any]]:
    yield "denoiser class", type(expert.denoiser).__name__, type(first.denoiser).__name__
    mine, other = _architecture(expert.denoiser), _architecture(first.denoiser)
    if mine != other:  # which the families tell better, where they differ too
        yield "family", _family(expert), _family(first)
    yield from ((f"denoiser {key}", mine[key], other.get(key)) for key in mine)
    for part, describe in (("scheduler", _schedule), ("vae", latent_space), *((part, _tokens) for part in _TOKENIZERS)):
        if part in expert.components and part in first.components:
            a, b = describe(expert.components[part]), describe(first.components[part])
            yield from ((f"{part} {key}", a[key], b[key]) for key in a)


def _architecture(denoiser: nn.Module) -> dict[str, Any]:
    # Files in the wild carry entries of training scripts; only the constructor's own describe the architecture.
    keys = [key for key in inspect.signature(type(denoiser)).parameters if key not in FREE_CONFIG]
    return {key: _plain(_config(denoiser).get(key)) for key in keys}


def _family(expert: Expert) -> str | None:
    aesthetics = bool(expert.components.get("requires_aesthetics_score"))
    return family_of_config(type(expert.denoiser).__name__, _config(expert.denoiser), aesthetics)


def _schedule(scheduler: Any) -> dict[str, Any]:
    # The shift of a flow says only at which times a picture is drawn: experts may differ in it.
    flows = type(scheduler).__name__.startswith("FlowMatch") or _config(scheduler).get("use_flow_sigmas")
    # A switch that a scheduler class does not have is off.
    return {"process": "flow matching" if flows else "diffusion"} | {
        key: _plain(_config(scheduler).get(key)) or None for key in _SCHEDULE
    }


def latent_space(vae: Any) -> dict[str, Any]:
    """What a VAE's latents mean: two VAEs with equal entries can decode each other's."""
    return {
        "downsampling factor": downsampling(vae),
        **{key: _plain(_config(vae).get(key)) for key in _LATENTS},
        "statistics of patches": _statistics(vae),
    }


def _statistics(vae: Any) -> str | None:
    """A mark of what FLUX.2's VAE measures its latents by, whatever type they were loaded in; None for others."""
    kept = getattr(vae, "bn", None)
    if kept is None or kept.running_mean.is_meta:
        return None
    numbers = torch.cat([kept.running_mean, kept.running_var]).bfloat16().float().tolist()
    return f"SHA-256 {hashlib.sha256(repr((numbers, kept.eps)).encode()).hexdigest()[:8]}..."


def downsampling(vae: Any) -> int | None:
    """Pixels along a side of a picture for each of a VAE's latents; None for a VAE that does not tell."""
    config = _config(vae)
    levels = len(config.get("block_out_channels") or config.get("dim_mult") or ())  # the latter: Qwen-Image
    return 2 ** (levels - 1) if levels else None


def _tokens(tokenizer: Any) -> dict[str, Any]:
    """Length of a prompt, and a short description of the vocabulary that only equal ones share."""
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor, which also takes pictures (FLUX.2 dev)
    words = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    mark = hashlib.sha256(repr(words).encode()).hexdigest()[:8]
    return {
        "length": tokenizer.model_max_length,
        "vocabulary": f"{len(words)} tokens ending in {words[-1][0]!r} (SHA-256 {mark}...)",
    }


def _config(part: Any) -> Mapping[str, Any]:
    return getattr(part, "config", {})


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _otherwise(expert: Expert, first: Expert) -> str:
    vaes = [one.components.get("vae") for one in (expert, first)]
    if None not in vaes and latent_space(vaes[0]) != latent_space(vaes[1]):
        return " (their latents differ, too, so what they predict cannot be combined at output level either)"
    return ", or combine what they predict (level: output, OutputEnsembleDenoiser)"


def _remedy(what: str, otherwise: str) -> str:
    part = what.split()[0]
    if part == "vae":
        return "experts whose latents mean the same; use experts that share a VAE's latent space"
    if part == "scheduler":
        return f"one noise schedule and prediction type; use experts fine-tuned from one base model{otherwise}"
    if part in _TOKENIZERS:
        return (
            "one tokenizer, because the prompt is tokenized once for all; use experts fine-tuned from one base model, "
            f"with the same added words{otherwise}"
        )
    return (
        f"experts of one architecture; use checkpoints fine-tuned from the same base model (SD 1.5 with SD 1.5, ...)"
        f"{otherwise}"
    )
