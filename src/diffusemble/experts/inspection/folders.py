"""One folder: a pipeline, a part of one, an ensemble, or a place with files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from diffusemble.config.places import looked
from diffusemble.experts.checksums import DENOISERS, read_index, read_json, sha256, variant_of, weight_files
from diffusemble.experts.formats.families import family_of_config
from diffusemble.experts.formats.header import PICKLES, read_header
from diffusemble.experts.inspection.files import inspect_file, prediction_of
from diffusemble.experts.inspection.report import Part, Report, joined, part_of
from diffusemble.experts.sources import INDEX, SPEC, parse_source

_AGGREGATOR, _MERGED = "aggregator.safetensors", "merge.json"
_MODELS = (".safetensors", ".sft", ".gguf", *PICKLES)


def inspect(path: str | Path, hashed: bool = True) -> Iterator[Report]:
    """What a file or folder is: one report, or one for each model in a folder that is none itself.

    Args:
        path: a file, folder, or ``"zoo:<name>"``; one that is missing or wrong is a report with a problem.
        hashed: whether to read files whole for their SHA-256.
    """
    place = Path(path).expanduser()
    try:
        if str(path).startswith("zoo:"):
            from diffusemble.zoo import folder

            for source in parse_source(str(path)):
                yield from (replace(one, path=str(source)) for one in inspect(folder(source.where), hashed))
        elif place.is_file():
            yield inspect_file(place, hashed)
        elif not place.is_dir():
            yield Report(str(path), problem=f"There is no file or folder {looked(str(path))}. Check the path.")
        elif (place / SPEC).is_file():
            yield _of_ensemble(place, hashed)
        elif (place / INDEX).is_file():
            yield _of_pipeline(place, hashed)
        elif (place / "config.json").is_file():
            yield _of_part(place, hashed)
        else:
            yield from _of_place(place, hashed)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        yield Report(str(path), problem=str(error) or type(error).__name__)


def _of_place(place: Path, hashed: bool) -> Iterator[Report]:
    files = sorted(file for file in place.iterdir() if file.suffix in _MODELS)
    inside = sorted(one for one in place.iterdir() if (one / INDEX).is_file() or (one / SPEC).is_file())
    if not files and not inside:
        yield Report(str(place), problem=f"{place} holds no models: no {INDEX}, no {SPEC}, no .safetensors files.")
    for one in (*files, *inside):
        yield from inspect(one, hashed)


def _of_pipeline(place: Path, hashed: bool) -> Report:
    index = read_index(place)
    found = weight_files(place, index)
    files = {part: found[part] for part in sorted(found, key=lambda part: part not in DENOISERS)}
    vae = _weights_of(place / "vae", variant_of(place)) if "vae" in index else []
    if vae:
        files["vae"] = vae
    denoiser = next(part for part in DENOISERS if part in files)
    config = read_json(place / denoiser / "config.json")
    family = family_of_config(index[denoiser][1], config, bool(index.get("requires_aesthetics_score")))
    scheduler = read_json(place / "scheduler/scheduler_config.json") if (place / "scheduler").is_dir() else {}
    every = [file for own in files.values() for file in own]
    recipe = read_json(place / _MERGED) if (place / _MERGED).is_file() else None
    return Report(
        path=str(place),
        what=f"{family or 'unknown'} pipeline{', merged' if recipe else ''} (a folder of diffusers)",
        kind="pipeline",
        family=family,
        layout="diffusers",
        parts=tuple(_part(f"{part} ({index[part][1]})", own) for part, own in files.items()),
        prediction=prediction_of(family, scheduler),
        size=sum(file.stat().st_size for file in every),
        files={str(file.relative_to(place)): sha256(file) for file in every} if hashed else {},
        notes={"pipeline": str(index.get("_class_name")), "scheduler": str(scheduler.get("_class_name", "none"))},
        recipe=recipe,
    )


def _of_part(place: Path, hashed: bool) -> Report:
    config = read_json(place / "config.json")
    name = str(config.get("_class_name") or ", ".join(config.get("architectures") or ["unknown"]))
    own = _weights_of(place, None)
    if not own:
        return Report(str(place), problem=f"{place} has a config.json ({name}), but no .safetensors weights.")
    family = family_of_config(name, config)
    return Report(
        path=str(place),
        what=f"{name}{f' of {family}' if family else ''} alone (a folder of diffusers)",
        kind=name,
        family=family,
        layout="diffusers",
        parts=(_part(name, own),),
        size=sum(file.stat().st_size for file in own),
        files={file.name: sha256(file) for file in own} if hashed else {},
    )


def _of_ensemble(place: Path, hashed: bool) -> Report:
    experts = read_json(place / SPEC)["experts"]
    inner = inspect_file(place / _AGGREGATOR, hashed)
    called = [f"{one['name']} ({one['source'] or 'bare denoiser'})" for one in experts]
    return Report(
        path=str(place),
        what=f"ensemble of {len(experts)} experts",
        problem=inner.problem,
        kind="ensemble",
        parts=inner.parts,
        size=inner.size,
        sha256=inner.sha256,
        notes={"aggregator": inner.notes.get("aggregator", "unknown"), "experts": ", ".join(called)},
    )


def _part(name: str, files: list[Path]) -> Part:
    return joined(name, [part_of(name, header, list(header.forms)) for header in map(read_header, files)])


def _weights_of(place: Path, variant: str | None) -> list[Path]:
    """Weight files of a part, without the shards of another variant."""
    files = sorted(place.glob("*.safetensors"))
    named = [file for file in files if variant and f".{variant}." in file.name]
    return named or [file for file in files if ".fp16." not in file.name] or files
