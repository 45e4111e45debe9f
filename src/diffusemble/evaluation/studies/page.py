"""A study's folder: its page, its tables as CSV and LaTeX, its figures; and the page of all findings."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from diffusemble.evaluation.studies.config import StudyConfig
from diffusemble.evaluation.studies.findings import Findings
from diffusemble.registry import STUDIES

PAGE, RECORD, ALL = "index.md", "study.json", "findings.md"
ELSEWHERE = {"docs", "out"}  # where things lie changes no number


def write_page(name: str, config: StudyConfig, findings: Findings, notes: Mapping[str, Any], minutes: float) -> Path:
    """Write ``<docs>/<name>``, and the page of all findings beside it.

    ``minutes`` is what the run took; a run that only redraws keeps those of the run that measured.

    Returns:
        The study's page.
    """
    folder = Path(config.docs) / name
    folder.mkdir(parents=True, exist_ok=True)
    minutes = round(max(minutes, _minutes(folder / RECORD, command(name, config))), 1)
    parts = [f"# {STUDIES[name].title}", f"**{findings.sentence}**"]
    if STUDIES[name].paper:
        parts.append(f"In the literature: {STUDIES[name].paper}.")
    for number, table in enumerate(findings.tables):
        parts += [table.caption, table.markdown()]
        (folder / f"{table.name}.csv").write_text(table.csv(), encoding="utf-8")
        (folder / f"{table.name}.tex").write_text(table.latex(), encoding="utf-8")
        if number == 0:
            parts += [f"![{file.partition('.')[0].replace('-', ' ')}]({file})" for file in findings.figures]
    for file, figure in findings.figures.items():
        _save(figure, folder / file)
    parts += ["## Settings", _settings(name, config, {**findings.notes, **notes, "minutes": minutes})]
    page = folder / PAGE
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    record: dict[str, Any] = {
        "title": STUDIES[name].title,
        "sentence": findings.sentence,
        "command": command(name, config),
    }
    record["minutes"] = minutes
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    _write_all(Path(config.docs))
    return page


def command(name: str, config: StudyConfig) -> str:
    """What to type to run the study again."""
    changed = config.model_dump(mode="json", exclude_defaults=True)
    words = [f"{key}={_yaml(value)}" for key, value in changed.items() if key not in ELSEWHERE]
    return " ".join([f"diffusemble study {name}", *words])


def _minutes(file: Path, this: str) -> float:
    record = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return float(record["minutes"]) if record.get("command") == this else 0.0


def _settings(name: str, config: StudyConfig, notes: Mapping[str, Any]) -> str:
    lines = [f"    {command(name, config)}", ""]
    lines += [f"- {key}: {_plain(value)}" for key, value in notes.items()]
    shown = {key: value for key, value in config.model_dump(mode="json").items() if key not in ELSEWHERE}
    lines.append("- settings: " + ", ".join(f"{key} {_plain(value)}" for key, value in shown.items()))
    lines.append(
        f"- intervals are 95 %, paired by picture, over {config.bootstrap:,} bootstrap samples that draw whole "
        f"concepts; bold ones exclude zero"
    )
    return "\n".join(lines)


def _write_all(docs: Path) -> None:
    """Every study that has run, in the order of the table, with its sentence."""
    parts = ["# Findings", "One sentence per study, computed from its numbers; [how they work](../studies.md)."]
    for name in STUDIES:
        file = docs / name / RECORD
        if file.is_file():
            record = json.loads(file.read_text(encoding="utf-8"))
            parts.append(f"## [{record['title']}]({name}/{PAGE})\n\n{record['sentence']}\n\n    {record['command']}")
    (docs / ALL).write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _save(figure: Any, file: Path) -> None:
    if isinstance(figure, Image.Image):
        figure.save(file, quality=82)
    else:
        figure.savefig(file, dpi=110)


def _yaml(value: Any) -> str:
    plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z][\w./-]*|zoo:\w+", value)
    return shlex.quote(value if plain else json.dumps(value, ensure_ascii=False))


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{key} {_plain(inner)}" for key, inner in value.items()) or "none"
    return (" ".join(map(str, value)) or "none") if isinstance(value, (list, tuple)) else str(value) or "none"
