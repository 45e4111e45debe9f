"""What the README and the pages of docs/ say can be done: commands are read, imports, links and paths exist."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from diffusemble import settings
from diffusemble.app.cli import app
from diffusemble.evaluation import protocols

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
NAMED = re.compile(r"(?<![\w/.-])(?:src|tests|recipes|docs|examples|benchmarks)/[\w./-]*\w")
PLAIN = ("inspect", "report", "zoo")  # commands without a configuration

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


class ReadError(Exception):
    """Raised where a command would begin its work."""


def blocks(page: Path) -> list[re.Match[str]]:
    return list(BLOCK.finditer(page.read_text(encoding="utf-8")))


def prose(page: Path) -> str:
    return BLOCK.sub("", page.read_text(encoding="utf-8"))


def commands(page: Path) -> Iterator[tuple[list[str], int]]:
    """Words behind ``diffusemble`` of every command, and where its block begins; 0 for those in prose."""
    for block in blocks(page):
        for line in block[3].replace("\\\n", " ").splitlines():
            if line.strip().startswith("diffusemble "):
                yield shlex.split(line, comments=True)[1:], block.start()
    for code in re.findall(r"`diffusemble ([^`]+)`", prose(page)):
        if "=" in code or "--config" in code:
            yield shlex.split(code), 0


def settings_of(page: Path, place: int) -> str | None:
    """The YAML that the page shows for a file, behind the command or else before it."""
    shown = [block for block in blocks(page) if block[2] == "yaml"]
    after = [block for block in shown if block.start() > place] or shown[-1:]
    return after[0][3] if after else None


@pytest.fixture
def dry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands read their configuration, and no more."""
    read = settings.load_config

    def stop(*arguments: Any, **given: Any) -> None:
        read(*arguments, **given)
        raise ReadError

    for module in (settings, protocols):
        monkeypatch.setattr(module, "load_config", stop)
    monkeypatch.chdir(ROOT)


@pytest.mark.usefixtures("dry")
@every_page
def test_commands_are_understood(page: Path, tmp_path: Path) -> None:
    for words, place in commands(page):
        name, *rest = words
        command = get_command(app).commands[name]  # type: ignore[attr-defined]
        command.make_context(name, list(rest))
        files = [number for number, word in enumerate(words) if words[number - 1] == "--config"]
        absent = [number for number in files if not Path(words[number]).exists()]
        for number in absent:
            (tmp_path / "shown.yaml").write_text(settings_of(page, place) or "")
            words[number] = str(tmp_path / "shown.yaml")
        if name in PLAIN or (absent and settings_of(page, place) is None):
            continue
        done = CliRunner().invoke(app, words)
        assert isinstance(done.exception, ReadError), (words, done.output)


@every_page
def test_examples_in_python_import_what_there_is(page: Path) -> None:
    for block in blocks(page):
        if block[2] == "yaml":
            yaml.safe_load(block[3])
        if block[2] != "python":
            continue
        for node in ast.walk(ast.parse(block[3])):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("diffusemble"):
                module = import_module(str(node.module))
                assert [one.name for one in node.names if not hasattr(module, one.name)] == []


@every_page
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    text = prose(page)
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", text))]
    assert [link for link in links if ":" not in link and not (page.parent / link).exists()] == []
    shown = [*re.findall(r"`([^`\n]+)`", text), *(block[3] for block in blocks(page))]
    named = [path for code in shown for path in NAMED.findall(code)]
    assert [path for path in named if not (ROOT / path).exists()] == []
