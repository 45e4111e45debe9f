"""LoRA and LyCORIS files, added to the weights of an expert.

An expert never changes while it draws or while an aggregator is trained for it, so the file is added into the weights:
every block then costs what it cost before, text encoders and merging need no special case, an adapter that is trained
later stands on top, and a file that does not fit shows at once, because every one of its tensors must find its place.
"""

from __future__ import annotations

import copy
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open

from diffusemble.experts.additions.formulas import changed, difference
from diffusemble.experts.additions.names import Target, targets
from diffusemble.experts.checksums import DENOISERS
from diffusemble.experts.formats.adapters import BUNDLED, UNREADABLE, canonical, split_name
from diffusemble.experts.formats.contents import contents_of
from diffusemble.experts.formats.header import Header

_DIFFUSERS_SETTINGS = "lora_adapter_metadata"
_SHOWN = 3
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Group:
    """The factors of one module: its name in the file, and the names of tensors by factor."""

    name: str
    keys: Mapping[str, str]


def add_lora(parts: Mapping[str, Any], header: Header, amount: float) -> dict[str, Any]:
    """Parts of a pipeline with a LoRA or LyCORIS file added.

    Args:
        parts: of the pipeline; its denoiser is changed in place, text encoders are copied first.
        header: of the file.
        amount: how much of it; 0 leaves every bit as it was.

    Returns:
        All parts.

    Raises:
        ValueError: a tensor of the file has no place in the model or another shape, or its kind is not known.
    """
    places = _match(_groups(header), parts, header)
    if amount == 0:
        return dict(parts)
    touched = {target.part for _, target in places}
    own = {
        name: part if name in DENOISERS or name not in touched else copy.deepcopy(part) for name, part in parts.items()
    }
    alphas = _Alphas(header)
    with safe_open(str(header.file), framework="pt") as opened, torch.no_grad():
        for group, target in places:
            factors = {factor: opened.get_tensor(key) for factor, key in group.keys.items()}
            try:
                alpha = float(factors.pop("alpha")) if "alpha" in factors else alphas.of(group.name)
                _change(own[target.part], target, factors, alpha, amount)
            except (ValueError, RuntimeError, IndexError) as error:
                raise ValueError(_misfit(header, parts, f"{group.name!r}: {error}")) from error
    return own


def _change(model: Any, target: Target, factors: dict[str, torch.Tensor], alpha: float | None, amount: float) -> None:
    bias, magnitude = factors.pop("bias", None), factors.pop("dora_scale", None)
    if "magnitude" in factors:  # peft's, always one for each output, however it lies
        magnitude = factors.pop("magnitude").reshape(-1, 1)
    if factors:
        whole = target.read(model)
        delta = difference(whole, factors, alpha)
        if delta.numel() != whole.numel() or delta.shape[0] != whole.shape[0]:
            raise ValueError(f"its difference is {tuple(delta.shape)}, the weight {tuple(whole.shape)}")
        target.write(model, changed(whole, delta, amount, magnitude))
    if bias is not None:
        whole = target.read(model, "bias")
        if bias.numel() != whole.numel():
            raise ValueError(f"its bias is {tuple(bias.shape)}, the model's {tuple(whole.shape)}")
        target.write(model, changed(whole, bias, amount), "bias")


def _groups(header: Header) -> list[_Group]:
    found: dict[str, dict[str, str]] = {}
    names: dict[str, str] = {}
    for key in header.forms:
        if key.startswith(BUNDLED):  # words, which are added as such
            continue
        for pattern, kind in UNREADABLE.items():
            if re.match(pattern, key):
                raise ValueError(
                    f"{header.file} is {kind}; its tensor {key!r} cannot be read here. Give a LoRA, or another kind of "
                    f"LyCORIS."
                )
        split = split_name(key, header.forms)
        if split is None:
            raise ValueError(
                f"{header.file} has a tensor {key!r}, which belongs to no kind of LoRA or LyCORIS known here."
            )
        name, factor = split
        found.setdefault(canonical(name), {})[factor] = key
        names.setdefault(canonical(name), name)
    return [_Group(names[name], keys) for name, keys in found.items() if set(keys) != {"alpha"}]


def _match(groups: list[_Group], parts: Mapping[str, Any], header: Header) -> list[tuple[_Group, Target]]:
    known = targets(parts)
    lost = [group.name for group in groups if canonical(group.name) not in known]
    if lost:
        what = (
            "none of its modules is"
            if len(lost) == len(groups)
            else f"{len(lost)} of its {len(groups)} modules are not"
        )
        raise ValueError(_misfit(header, parts, f"{what} in the model: {', '.join(lost[:_SHOWN])}"))
    return _once([(group, known[canonical(group.name)]) for group in groups], header)


def _once(places: list[tuple[_Group, Target]], header: Header) -> list[tuple[_Group, Target]]:
    """Without what changes weights that others change already: some files hold layers whole and in pieces."""
    seen, twice = set[tuple[str, str]](), list[_Group]()
    for group, target in sorted(places, key=lambda place: len(place[1].pieces)):
        if not group.keys.keys() <= {"alpha", "bias"}:
            paths = {(target.part, path) for path, _ in target.pieces}
            if paths <= seen:
                twice.append(group)
            seen |= paths
    if twice:
        _LOG.warning(
            f"{header.file} holds {len(twice)} modules twice, whole and in pieces or under two names, such as "
            f"{twice[0].name!r}. They are added once."
        )
    return [place for place in places if place[0] not in twice]


def _misfit(header: Header, parts: Mapping[str, Any], reason: str) -> str:
    denoiser = next(type(parts[part]).__name__ for part in DENOISERS if part in parts)
    return (
        f"{header.file} is {contents_of(header)} and does not fit this {denoiser} with "
        f"{', '.join(part for part in parts if part.startswith('text_encoder')) or 'no text encoder'} ({reason}). Give "
        f"a file that was trained for the model's family."
    )


class _Alphas:
    """Strengths that stand in settings beside the tensors, as diffusers and peft write them."""

    _settings: dict[str, Any]

    def __init__(self, header: Header) -> None:
        beside = header.file.with_name("adapter_config.json")
        text = header.metadata.get(_DIFFUSERS_SETTINGS, "")
        if not text and header.file.name == "adapter_model.safetensors" and beside.is_file():
            text = beside.read_text(encoding="utf-8")
        try:
            self._settings = dict(json.loads(text)) if text else {}
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{header.file}: the settings beside its tensors, which tell its strength, are damaged ({error}). Get "
                f"the file again, with its adapter_config.json if it has one."
            ) from error

    def of(self, name: str) -> float | None:
        """Alpha of a module, so that alpha / r is its scale; None where nothing is said."""
        start = next(
            (p for p in ("unet.", "transformer.", "text_encoder_2.", "text_encoder.") if name.startswith(p)), ""
        )
        own = {key.removeprefix(start): value for key, value in self._settings.items()}
        if "lora_alpha" not in own:
            return None
        module = name.removeprefix(start)
        alpha = _pattern(own.get("alpha_pattern"), module, own["lora_alpha"])
        rank = _pattern(own.get("rank_pattern"), module, own.get("r", 1))
        return alpha * rank**0.5 if own.get("use_rslora") else alpha


def _pattern(table: Mapping[str, float] | None, module: str, default: float) -> float:
    return next(
        (float(value) for key, value in (table or {}).items() if re.fullmatch(rf"(?:.*\.)?{key}", module)),
        float(default),
    )
