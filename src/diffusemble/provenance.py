"""What a picture was drawn with, so that drawing it again can say what has changed since."""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import version

import diffusemble
from diffusemble.aggregators.base import Combiner
from diffusemble.aggregators.storage import name_of
from diffusemble.config.generate import ExpertRecord, MadeWith
from diffusemble.ensembles.base import Ensemble

PACKAGES = ("torch", "diffusers", "transformers")


def made_with(ensemble: Ensemble, refiner: Ensemble | None = None) -> MadeWith:
    """Versions, device, and SHA-256 of the experts' files, of a refiner's too, and of the aggregator."""
    return MadeWith(
        versions=versions(),
        device=f"{ensemble.device.type} {str(ensemble.dtype).removeprefix('torch.')}",
        aggregator=f"{name_of(ensemble.aggregator)} {fingerprint(ensemble.aggregator)}",
        experts=tuple(
            ExpertRecord(name=expert.name, source=expert.source, files=dict(expert.files))
            for expert in (*ensemble.experts, *(refiner.experts if refiner else ()))
        ),
    )


def versions() -> dict[str, str]:
    """Versions of this package, of those it draws with, and of Python."""
    of_packages = {name: version(name) for name in PACKAGES}
    return {"diffusemble": diffusemble.__version__, **of_packages, "python": platform.python_version()}


def fingerprint(aggregator: Combiner) -> str:
    """SHA-256 of an aggregator's options and weights, 16 hexadecimal digits."""
    total = hashlib.sha256(aggregator.options.model_dump_json().encode())
    for name, tensor in sorted(aggregator.state_dict().items()):
        total.update(name.encode())
        total.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()[:16]


def differences(then: MadeWith, now: MadeWith) -> tuple[str, ...]:
    """One sentence for everything that could make the picture come out differently."""
    found = [
        f"{name} was {before}, now {now.versions.get(name, 'missing')}"
        for name, before in then.versions.items()
        if now.versions.get(name) != before
    ]
    for what in ("device", "aggregator"):
        before, after = getattr(then, what), getattr(now, what)
        if before != after:
            found.append(f"the {what} was {before}, now {after}")
    if [expert.name for expert in then.experts] != [expert.name for expert in now.experts]:
        return (*found, f"the experts were {_names(then)}, now {_names(now)}")
    for old, new in zip(then.experts, now.experts, strict=True):
        changed = [file for file in {**old.files, **new.files} if old.files.get(file) != new.files.get(file)]
        found += [f"expert {old.name!r}: {file} has changed" for file in changed]
    return tuple(found)


def _names(made: MadeWith) -> str:
    return ", ".join(expert.name for expert in made.experts)
