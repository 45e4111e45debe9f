"""What a configuration compares: built-in systems by name; ensembles, checkpoints, aggregators of one's own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from diffusemble.aggregators.storage import load_aggregator
from diffusemble.config.schema import nearest
from diffusemble.ensembles.assembly import join
from diffusemble.ensembles.assembly import open_ensemble as open_saved
from diffusemble.ensembles.base import Ensemble
from diffusemble.ensembles.block_level import EnsembleDenoiser, build_aggregator
from diffusemble.ensembles.output_level import OutputEnsembleDenoiser
from diffusemble.evaluation.config import BenchConfig, SystemConfig
from diffusemble.evaluation.systems import LEARNED, System, build_systems, plain_pipeline
from diffusemble.experts.expert import Expert
from diffusemble.experts.load import load_experts
from diffusemble.experts.reference import WEIGHTS_FILE
from diffusemble.experts.sources import SPEC, is_file, split_source
from diffusemble.pictures.files import slug
from diffusemble.provenance import fingerprint
from diffusemble.zoo import trained_ensemble


@dataclass(frozen=True)
class Chosen:
    """What is compared.

    Attributes:
        systems: in order.
        stamps: for systems that the ensemble and the experts do not define, what their scores depend on, by name.
    """

    systems: tuple[System, ...]
    stamps: Mapping[str, str]


def ensemble_folder(source: str) -> Path:
    """Folder of ``zoo:<group>``, or the folder itself.

    Raises:
        FileNotFoundError: the zoo has no trained ensemble for the group.
    """
    kind, colon, group = source.partition(":")
    if kind != "zoo" or not colon:
        return Path(source)
    folder = trained_ensemble(group)
    if folder is None:
        raise FileNotFoundError(
            f"The zoo has no trained ensemble for the group {group!r}. Train one with `diffusemble train`, and give "
            f"its folder as ensemble."
        )
    return folder


def open_ensemble(config: BenchConfig, device: torch.device, dtype: torch.dtype) -> Ensemble:
    """The ensemble of a configuration; of experts alone, their block-wise mean stands in for one.

    Raises:
        ValueError: its experts meet at the output alone; the message says how to measure it.
    """
    if config.experts:
        experts = load_experts(config.experts, dtype=dtype, device=device)
        return EnsembleDenoiser(experts, "mean").eval()
    folder = ensemble_folder(config.ensemble or "")
    ensemble = open_saved(folder, dtype=dtype, device=device)
    if isinstance(ensemble, OutputEnsembleDenoiser):
        raise ValueError(
            f"An ensemble is compared with what its experts do in their blocks, and those of {folder} meet at the "
            f"output alone. Give one of them in its place and the ensemble among the systems: "
            f"experts=[{ensemble.experts[0].source}] systems=[{ensemble.experts[0].name},ensemble:{folder}]."
        )
    return ensemble.eval()


def choose_systems(config: BenchConfig, ensemble: Ensemble) -> Chosen:
    """The systems of a configuration: all built-in ones, or those it lists.

    Raises:
        ValueError: an unknown name, a name twice, or a specification that cannot be loaded for these experts.
    """
    base = load_experts(config.base, device=ensemble.device, dtype=ensemble.dtype)[0] if config.base else None
    every = build_systems(ensemble, base, config.guidance)
    built = [system for system in every if system.name != LEARNED or not config.experts]
    if not config.systems:
        return Chosen(tuple(built), {})
    known = {system.name: system for system in built}
    found: list[System] = []
    stamps: dict[str, str] = {}
    for spec in config.systems:
        system, stamp = _system(spec, ensemble, known)
        if system.name in [other.name for other in found]:
            raise ValueError(f"Two systems are called {system.name!r}. Give one of them another name (name: ...).")
        found.append(system if spec.title is None else replace(system, title=spec.title))
        if stamp:
            stamps[system.name] = stamp
    _refuse_taken(stamps, known)
    return Chosen(tuple(found), stamps)


def _system(spec: SystemConfig, ensemble: Ensemble, known: Mapping[str, System]) -> tuple[System, str]:
    if spec.ensemble is not None:
        return _other_ensemble(spec, spec.ensemble, ensemble)
    if spec.model is not None:
        return _checkpoint(spec, spec.model, ensemble)
    if spec.aggregator is not None:
        return _aggregated(spec, ensemble)
    name = spec.name or ""
    if name not in known:
        raise ValueError(
            f"There is no system {name!r} to evaluate{nearest(name, known)}. Choose among: {', '.join(known)}; or give "
            f"ensemble:FOLDER, model:PATH, or an aggregator by name."
        )
    return known[name], ""


def _other_ensemble(spec: SystemConfig, source: str, ensemble: Ensemble) -> tuple[System, str]:
    folder = ensemble_folder(source)
    shared = _shared(folder, ensemble.experts)
    if shared:  # what is loaded already is not loaded again
        aggregator = load_aggregator(folder / WEIGHTS_FILE, dtype=ensemble.dtype).to(ensemble.device)
        other = join(shared, aggregator).eval()
    else:
        other = open_saved(folder, dtype=ensemble.dtype, device=ensemble.device).eval()
    name = spec.name or slug(source.removeprefix("zoo:") if source.startswith("zoo:") else Path(source).name)
    stamp = _stamp([fingerprint(other.aggregator), [dict(expert.files) for expert in other.experts]])
    return System(name, f"ensemble *{name}*", "ensemble", other.pipeline()), stamp


def _shared(folder: Path, experts: Sequence[Expert]) -> list[Expert] | None:
    """The loaded experts that a saved ensemble refers to; None if any of them is another."""
    file = folder / SPEC
    if not file.is_file():
        return None  # loading will say what is wrong
    wanted = [dict(one["files"]) for one in json.loads(file.read_text(encoding="utf-8"))["experts"]]
    found = [next((expert for expert in experts if files and dict(expert.files) == files), None) for files in wanted]
    kept = [expert for expert in found if expert is not None]
    return kept if len(kept) == len(wanted) else None


def _checkpoint(spec: SystemConfig, source: str, ensemble: Ensemble) -> tuple[System, str]:
    first = ensemble.experts[0].source
    base = None if first is None or is_file(first) or not is_file(source) else split_source(first)[0]
    (expert, *rest) = load_experts(source, dtype=ensemble.dtype, device=ensemble.device, base=base)
    if rest:
        raise ValueError(f"model: takes one checkpoint; {source} is {1 + len(rest)} models. Give them one by one.")
    name = spec.name or slug(expert.name)
    return System(name, f"model *{name}*", "control", plain_pipeline(expert)), _stamp(dict(expert.files))


def _aggregated(spec: SystemConfig, ensemble: Ensemble) -> tuple[System, str]:
    choice = spec.aggregator
    if choice is None:
        raise ValueError("This system has no aggregator. Name one.")
    denoisers = [expert.denoiser for expert in ensemble.experts]
    torch.manual_seed(0)  # an untrained aggregator is still the same one in every run
    aggregator = build_aggregator(choice.name, denoisers, **choice.options)
    aggregator.to(device=ensemble.device, dtype=ensemble.dtype)
    options = "-".join(f"{key}-{value}" for key, value in choice.options.items())
    name = spec.name or slug(f"{choice.name} {options}")
    together = EnsembleDenoiser(ensemble.experts, aggregator).eval()
    return System(name, f"aggregator *{name}*", "control", together.pipeline()), _stamp(fingerprint(aggregator))


def _refuse_taken(stamps: Mapping[str, str], known: Mapping[str, System]) -> None:
    for name in stamps:
        if name in known:
            raise ValueError(f"The name {name!r} belongs to a built-in system. Give this one another (name: ...).")


def _stamp(parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
