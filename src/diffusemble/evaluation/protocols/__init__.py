"""The protocols that can be run by name; each YAML file beside this one holds the settings of one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from diffusemble.config.schema import nearest
from diffusemble.evaluation.config import EvaluateConfig, PicturesConfig
from diffusemble.evaluation.scenes.config import CocoMigConfig, ScenesConfig
from diffusemble.settings import load_config, read_settings

ZOO, SCENES, COCO_MIG = "zoo", "scenes", "coco-mig"
OWN = (ZOO, SCENES, COCO_MIG)  # with configurations of their own
Config = EvaluateConfig | PicturesConfig | ScenesConfig | CocoMigConfig
FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Protocol:
    """One protocol.

    Attributes:
        name: as on the command line.
        title: for pages.
        about: what is drawn and measured, in a sentence or two.
        wanted: which data a user has to bring, and in which form.
        settings: keys of ``PicturesConfig``.
    """

    name: str
    title: str
    about: str
    wanted: str
    settings: dict[str, Any]


def names() -> tuple[str, ...]:
    """All protocols; the zoo's first."""
    return (*OWN, *sorted(file.stem for file in FOLDER.glob("*.yaml")))


def protocol(name: str) -> Protocol:
    """The protocol of this name.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    if name in OWN or name not in names():
        raise ValueError(f"There is no protocol {name!r}{nearest(name, names())}. Choose one of: {', '.join(names())}.")
    data = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    title, about, wanted = (data.pop(key) for key in ("title", "about", "wanted"))
    return Protocol(name, title, about, wanted, data)


def load_evaluation(
    name: str | None = None, file: str | Path | None = None, overrides: Sequence[str] = (), **settings: Any
) -> Config:
    """The configuration of an evaluation: the protocol's settings, then the file's, then ``key=value``.

    Args:
        name: the protocol; otherwise the file or the overrides name it, or it is the zoo's.
        file: YAML.
        overrides: ``"key=value"``, dotted for nested keys.
        settings: keys and values on top of the file.

    Raises:
        ValueError: unknown protocol, a key that it does not have, or no prompts; the message says what to get.
    """
    given = {**({} if file is None else read_settings(file)), **settings}
    named = [text.partition("=")[2].strip() for text in overrides if text.partition("=")[0].strip() == "protocol"]
    name = name or (named[-1] if named else given.get("protocol", ZOO))
    if name == ZOO:
        return load_config(EvaluateConfig, None, overrides, **{**given, "protocol": ZOO})
    if name == SCENES:
        return load_config(ScenesConfig, None, overrides, **{**given, "protocol": SCENES})
    if name == COCO_MIG:
        return _coco_mig(given, overrides)
    chosen = protocol(name)
    out = {"out": f"build/evaluation/{name}", "report": f"build/evaluation/{name}.md"}
    data = {**chosen.settings, **out, **given, "protocol": name}
    if "prompts" not in data and not any(text.partition("=")[0].strip() == "prompts" for text in overrides):
        raise ValueError(f"The protocol {name!r} needs data that do not ship with this package. {chosen.wanted}")
    return load_config(PicturesConfig, None, overrides, **data)


def _coco_mig(given: Mapping[str, Any], overrides: Sequence[str]) -> CocoMigConfig:
    keys = {*given, *(text.partition("=")[0].split(".")[0].strip() for text in overrides)}
    missing = [key for key in ("prompts", "base", "systems") if key not in keys]
    if missing:
        raise ValueError(
            f"The protocol 'coco-mig' needs data that do not ship with this package; {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing. Get mig_bench.json of the MIGC authors, write who draws "
            f"with which weights into a file (docs/control.md shows one), and give it as --config."
        )
    return load_config(CocoMigConfig, None, overrides, **{**given, "protocol": COCO_MIG})
