"""`diffusemble control` from the command line."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner, Result

from diffusemble.app.cli import app


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


@pytest.fixture
def file(told: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A scene as a file, in the folder that the command runs in."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "scene.yaml"
    path.write_text(yaml.safe_dump(told()))
    return path


def test_another_process_draws_the_picture_again(file: Path) -> None:
    first = run("control", file, "--seed", 3, "--combine", "linear", "-o", "cat.png")
    assert first.exit_code == 0, first.output
    rows = first.stdout.splitlines()
    assert rows[:3] == ["picture   cat.png", "layout    cat-layout.png", "settings  cat.yaml"]
    assert re.fullmatch(r"took      5 denoiser calls \(interaction 3, migc 1, image-prompt 1\), \d+\.\d s", rows[3])
    command = [sys.executable, "-m", "diffusemble", "control", "cat.png"]
    again = subprocess.run(command, cwd=file.parent, capture_output=True, text=True, check=False)
    assert (again.returncode, again.stderr) == (0, "")
    with Image.open("cat.png") as one, Image.open("cat-2.png") as other:
        assert one.tobytes() == other.tobytes()


def test_flags_and_keys_become_settings(file: Path) -> None:
    keys = ["steps=2", "combine.options.mix=linear", "guidance=3"]
    done = run("control", file, *keys, "--seed", 1, "--seed", 2, "--compare", "--out", "out")
    assert done.exit_code == 0, done.output
    assert "sheet     out/0001-cat-on-box-compare.png" in done.stdout
    made = yaml.safe_load(Path("out/0001-cat-on-box.yaml").read_text())
    expected = {"steps": 2, "guidance": 3.0, "seeds": [1, 2], "compare": True}
    assert {key: made[key] for key in expected} == expected
    assert made["combine"] == {"name": "amdm", "options": {"mix": "linear"}}
    assert made["made_with"]["calls"] == {"interaction": 2, "migc": 0, "image-prompt": 0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["control"], "There is no scene to draw. Give its file"),
        (["control", "absent.yaml"], "There is no file absent.yaml"),
        (["control", "scene.yaml", "base=absent/", "-o", "scene.yaml/x"], "for scene.yaml is no folder. Give another"),
        (["control", "scene.yaml", "--combine", "linaer"], "(did you mean 'linear'?)"),
        (["control", "scene.yaml", "instances=[]"], "relations.0: its subject 'cat' is no instance"),
        (["control", "scene.yaml", "reference=absent.png"], "reference: there is no file absent.png (looked in "),
        (["control", "scene.yaml", "height=20"], "height must be a multiple of 8; got 20"),
    ],
)
def test_mistakes_are_one_message(file: Path, arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert "Traceback" not in done.output
