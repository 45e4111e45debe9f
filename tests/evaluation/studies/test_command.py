"""`diffusemble study`."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner, Result

from diffusemble.app.cli import app
from diffusemble.registry import STUDIES


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["study", *arguments], env={"COLUMNS": "200"})


def test_without_a_name_studies_are_listed() -> None:
    listed = run()
    assert listed.exit_code == 0
    assert [line.split()[0] for line in listed.stdout.splitlines()] == list(STUDIES)


def test_a_study_prints_its_sentence_and_its_page(tiny: Path, tmp_path: Path) -> None:
    places = [f"ensemble={tiny / 'ensemble'}", f"data={tiny / 'pictures'}", f"out={tmp_path / 'out'}"]
    small = ["held_out=2", "times=[100]", "draws=1", "bootstrap=50"]
    done = run("winners", *places, f"docs={tmp_path / 'docs'}", *small)
    assert done.exit_code == 0, done.output
    assert "The expert with the least error is expert-0 at" in done.stdout
    assert f"page  {tmp_path / 'docs/winners/index.md'}" in done.stdout


def test_mistakes_are_one_message(tiny: Path, tmp_path: Path) -> None:
    unknown = run("ablation")
    assert unknown.exit_code == 2
    assert "there is no study 'ablation' (did you mean 'ablations'?)" in unknown.stderr
    key = run("winners", "helt_out=3")
    assert key.exit_code == 2
    assert "there is no key 'helt_out' (value 3) (did you mean 'held_out'?)" in key.stderr
    empty = run("distilled", f"ensemble={tiny / 'ensemble'}", f"data={tiny / 'pictures'}", f"out={tmp_path}")
    assert empty.exit_code == 2
    assert "none are given. Distil one" in empty.stderr
    for key in ("out", "docs"):
        place = run("winners", "ensemble=absent", "out=x", f"{key}={__file__}")
        assert place.exit_code == 2
        assert f"{key} is a folder; " in place.stderr
