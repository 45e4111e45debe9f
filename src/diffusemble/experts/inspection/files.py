"""One file: what its header tells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffusemble.experts.checksums import DENOISERS, sha256
from diffusemble.experts.formats.contents import (
    ADAPTERS,
    CHECKPOINT,
    EMBEDDING,
    TEXT_STARTS,
    VAE_STARTS,
    VECTORS,
    Contents,
    contents_of,
    text_starts,
)
from diffusemble.experts.formats.distilled import usual_settings
from diffusemble.experts.formats.editions import Edition, edition_of
from diffusemble.experts.formats.families import DENOISER, PREFIXES, REPOSITORIES, SHORT
from diffusemble.experts.formats.header import Header, misnamed, read_header
from diffusemble.experts.formats.marks import is_scaled, marked_schedule, quantisation
from diffusemble.experts.inspection.adapters import adapter_notes
from diffusemble.experts.inspection.report import Part, Report, part_of

_MERGE = "diffusemble.merge"
_EMA = ("model_ema.",)


def inspect_file(file: Path, hashed: bool = True) -> Report:
    """What a file is; a wrong one is a report with a problem, never an error.

    Args:
        file: any file.
        hashed: whether to read it whole for its SHA-256.
    """
    size = file.stat().st_size
    checksum = sha256(file) if hashed else None
    try:
        if file.suffix != ".safetensors":
            raise ValueError(f"{file} {misnamed(file)}")
        header = read_header(file)
    except ValueError as error:
        return Report(str(file), problem=str(error), size=size, sha256=checksum)
    contents = contents_of(header)
    return Report(
        path=str(file),
        what=None if contents.kind == "unknown" else _called(contents),
        problem=_problem(header, contents),
        kind=contents.kind,
        family=contents.family,
        layout=contents.layout,
        parts=_parts(header, contents),
        prediction=_predicts(header, contents) if contents.kind == CHECKPOINT else None,
        size=size,
        sha256=checksum,
        notes=_notes(header, contents),
        metadata={key: text for key, text in header.metadata.items() if key != _MERGE},
        recipe=_recipe(header.metadata.get(_MERGE)),
    )


def prediction_of(family: str | None, marks: dict[str, Any]) -> str | None:
    """What a denoiser predicts, in words, from its family and what its file or scheduler tells."""
    told = marks.get("prediction_type")
    if told is not None:
        ends = ", zero terminal SNR" if marks.get("rescale_betas_zero_snr") else ""
        return f"{'v' if told == 'v_prediction' else told}{ends}"
    if DENOISER.get(family or "") == "transformer":  # all that are read
        return "flow"
    usual = {SHORT["sd2"]: "v for 768 px models, epsilon for 512 px ones"}.get(family or "", "usually epsilon")
    return f"not told by the file; {usual}"


def _called(contents: Contents) -> str:
    return str(contents).partition(" ")[2]


def _problem(header: Header, contents: Contents) -> str | None:
    kind = quantisation(header)
    if kind is not None:
        return f"It is quantised: {kind}, which cannot be read here. Give its fp8, bf16 or fp16 version."
    if contents.kind == "unknown":
        return "Names and shapes of its tensors fit nothing that is known here."
    if contents.kind == CHECKPOINT and contents.family not in DENOISER:
        return f"Of this family no files are read. Families that are: {', '.join(DENOISER)}."
    return None


def _parts(header: Header, contents: Contents) -> tuple[Part, ...]:
    left = dict.fromkeys(header.forms)
    found = []

    def take(name: str, *starts: str) -> None:
        keys = [key for key in left if key.startswith(starts)]
        for key in keys:
            del left[key]
        if keys:
            found.append(part_of(name, header, keys))

    if contents.kind == CHECKPOINT:
        for part in contents.parts:
            if part in TEXT_STARTS:
                take(part, *text_starts(part, contents.family))
            elif part == "vae":
                take(part, *VAE_STARTS)
        take("moving average of the training", *_EMA)
        denoiser = next((part for part in (*DENOISERS, "denoiser") if part in contents.parts), "denoiser")
        prefix = next((one for one in PREFIXES if one and any(key.startswith(one) for key in left)), "")
        take(denoiser, prefix)
        found.insert(0, found.pop())
    if left:
        found.append(part_of("rest" if found else _called(contents), header, list(left)))
    return tuple(found)


def _notes(header: Header, contents: Contents) -> dict[str, str]:
    if contents.kind in ADAPTERS:
        return adapter_notes(header)
    if contents.kind == EMBEDDING:
        key = next(iter(header.forms))
        shape = header.shape(key)
        named = header.file.stem if key in ("emb_params", "*", *VECTORS) else key
        return {"word": named, "vectors": str(shape[0] if len(shape) > 1 else 1)}
    notes = {}
    spec = _recipe(header.metadata.get("diffusemble.aggregator"))
    if spec:
        sizes = spec.get("sizes", {})
        notes = {"aggregator": str(spec.get("name", "unreadable")), "experts": str(sizes.get("experts", "?"))}
    if is_scaled(header):
        notes["fp8"] = "scaled: read as what it stands for"
    edition = _edition(header, contents)
    told = {
        "edition": edition.name if edition else None,
        "usually drawn with": usual_settings(header, contents.family) if contents.kind == CHECKPOINT else None,
    }
    return notes | {name: text for name, text in told.items() if text}


def _edition(header: Header, contents: Contents) -> Edition | None:
    known = contents.kind == CHECKPOINT and contents.family in REPOSITORIES
    return edition_of(header, contents.family or "") if known else None


def _predicts(header: Header, contents: Contents) -> str | None:
    edition = _edition(header, contents)
    return edition.name if edition and edition.edm else prediction_of(contents.family, marked_schedule(header))


def _recipe(text: str | None) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] | None = json.loads(text) if text else None
    except ValueError:
        return {"unreadable": text}
    return found
