"""Every study runs, leaves a page with tables and figures, and measures nothing twice."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from diffusemble.evaluation.studies.config import CONFIGS, TrainedConfig
from diffusemble.evaluation.studies.page import command
from diffusemble.evaluation.studies.run import run_study
from diffusemble.registry import STUDIES
from diffusemble.settings import load_config
from tests.evaluation.studies.quick import quick

TRAINING = [name for name in STUDIES if issubclass(CONFIGS[name], TrainedConfig)]
OTHERS = [name for name in STUDIES if name not in TRAINING]
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in TRAINING]


def test_every_study_has_its_settings() -> None:
    assert list(CONFIGS) == list(STUDIES)


@pytest.mark.parametrize("name", [*OTHERS, *SLOW])
def test_a_study_leaves_its_page_and_goes_on_where_it_stopped(name: str, tiny: Path, tmp_path: Path) -> None:
    config = quick(name, tiny, tmp_path)
    findings, page = run_study(name, config)
    text = page.read_text()
    assert f"**{findings.sentence}**" in text
    assert command(name, config) in text
    assert "nan" not in text
    for table in findings.tables:
        assert table.rows
        assert table.markdown() in text
        rows = list(csv.reader(io.StringIO((page.parent / f"{table.name}.csv").read_text())))
        assert len(rows) == 1 + len(table.rows)
        assert len({len(row) for row in rows}) == 1
    for file in findings.figures:
        assert f"({file})" in text
        assert 0 < (page.parent / file).stat().st_size < 600_000
    assert json.loads((page.parent / "study.json").read_text())["sentence"] == findings.sentence
    assert f"]({name}/index.md)" in (tmp_path / "docs/findings.md").read_text()

    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "scores").rglob("*.*")}
    if name == "cost":  # only counts and times, always anew
        return
    assert kept
    again, _ = run_study(name, config)
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "scores").rglob("*.*")} == kept
    if name != "granularity":  # it tells seconds
        assert (again.sentence, again.tables) == (findings.sentence, findings.tables)
        assert untimed(page.read_text()) == untimed(text)


def untimed(text: str) -> list[str]:
    """Lines of a page without the minutes that its run took."""
    return [line for line in text.splitlines() if not line.startswith("- minutes:")]


@pytest.mark.parametrize("name", STUDIES)
def test_the_command_on_the_page_says_the_settings(name: str, tiny: Path, tmp_path: Path) -> None:
    import shlex

    config = quick(name, tiny, tmp_path)
    words = shlex.split(command(name, config))
    assert words[:3] == ["diffusemble", "study", name]
    places = {"out": config.out, "docs": config.docs}
    assert load_config(type(config), None, words[3:], **places) == config
