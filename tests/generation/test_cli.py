from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.numpy import save_file
from typer.testing import CliRunner, Result

from diffusemble import __version__
from diffusemble.app.cli import app
from diffusemble.app.tables import count, operations
from diffusemble.app.terminal import QUIET, advice, progress_bar
from ldm import save_ldm
from tiny import small_pipeline


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def process(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "diffusemble", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [["--help"], ["inspect", "cat.safetensors"]])
def test_help_and_headers_do_not_import_torch(arguments: list[str], tmp_path: Path) -> None:
    save_file({"lora_unet_x.lora_up.weight": np.zeros((2, 2))}, tmp_path / "cat.safetensors")
    code = (
        f"import sys; sys.argv = ['diffusemble', *{arguments}]\n"
        "from diffusemble.app.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: sys.exit(end.code or 'torch' in sys.modules or 'diffusers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    expected = ("LoRA",) if arguments[1:] else ("generate", "describe", "train", "evaluate", "zoo")
    assert all(text in done.stdout for text in expected)


def test_another_process_draws_the_same_bits_and_says_nothing_else(
    folders: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["-e", folders[0], "-e", folders[1], "--steps", "2", "--seed", "3", "--size", "24x16", "-o", "cat.png"]
    first = run("generate", "a cat", *flags)
    assert first.stdout == "picture   cat.png\nsettings  cat.yaml\n"
    again = process("generate", "--config", "cat.png", cwd=tmp_path)
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout == "picture   cat-2.png\nsettings  cat-2.yaml\n"
    with Image.open(tmp_path / "cat.png") as one, Image.open(tmp_path / "cat-2.png") as other:
        assert one.size == (24, 16)
        assert one.tobytes() == other.tobytes()


def test_the_memory_plan_is_told_before_it_is_kept(folders: tuple[str, ...], tmp_path: Path) -> None:
    done = run("generate", "a", "-e", folders[0], "--memory-budget", "1GB", "--steps", 1, "--out", tmp_path)
    first, *_, last = done.output.splitlines()
    assert first.startswith("memory plan: 1 of 1 denoisers stay on the device; ")
    assert last.startswith("memory    at most ")
    assert last.endswith("; the budget was 1.00 GB")


def test_flags_become_settings(folders: tuple[str, ...], tmp_path: Path) -> None:
    done = run(
        *(
            "generate",
            "a",
            "b",
            "-e",
            folders[0],
            "-e",
            folders[1],
            "-a",
            "sabw",
            "--set",
            "aggregator.options.preset=tiny",
        ),
        *("--negative", "c", "--seed", 4, "-n", 2, "--steps", 2, "--guidance", 3, "--scheduler", "euler"),
        *("--compare", "--attention", "--set", "attention.points=[mid]", "--set", "batch=1", "--out", tmp_path / "out"),
    )
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[-1] == f"sheet     {tmp_path}/out/0001-a-compare.png"
    settings = yaml.safe_load((tmp_path / "out/0001-a.yaml").read_text())
    expected = {
        "prompts": ["a", "b"],
        "negative": "c",
        "seeds": [4, 5],
        "steps": 2,
        "guidance": 3.0,
        "scheduler": "euler",
        "batch": 1,
        "compare": True,
        "attention": {"points": ["mid"], "steps": []},
        "aggregator": {"name": "sabw", "options": {"preset": "tiny"}},
    }
    assert {key: settings[key] for key in expected} == expected
    assert len(list((tmp_path / "out").glob("*-attention.png"))) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate"], 'There is nothing to draw. Give a prompt: diffusemble generate "a tiger'),
        (["generate", "x", "--scheduler", "ddmi"], "there is no scheduler 'ddmi' (did you mean 'ddim'?)"),
        (["generate", "x", "--size", "63x64"], "width must be a multiple of 8; got 63"),
        (["generate", "x", "--size", "64"], "--size is WIDTHxHEIGHT in pixels, such as 512x768; got '64'"),
        (["generate", "x", "--set", "gidance=3"], "there is no key 'gidance' (value 3) (did you mean 'guidance'?)"),
        (["generate", "--config", "absent.yaml"], "There is no file absent.yaml"),
        (["generate", "--set", "prompts=[]"], "prompts must have at least 1 item"),
        (["generate", "x", "--seed", "1", "--seed", "2", "-n", "2"], "--images counts up from one --seed; got 2"),
        (["generate", "x", "-e", "absent.safetensors"], "absent.safetensors"),
        (["generate", "x", "--ensemble", "absent"], "absent"),
        (["generate", "x", "-e", "absent.safetensors", "-o", __file__], "out is a folder or NAME.png; "),
        (["generate", "x", "-e", "absent.safetensors", "-o", f"{__file__}/x.png"], "test_cli.py is no folder. Give"),
        (["train", "stepz=3"], "there is no key 'stepz' (value 3) (did you mean 'steps'?)"),
        (["evaluate", "stepz=3"], "there is no key 'stepz' (value 3) (did you mean 'steps'?)"),
        (["zoo", "export", "dragons", "folder"], "it has no 'dragons'"),
    ],
)
def test_mistakes_are_one_message_and_exit_code_2(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert "Traceback" not in done.output


def test_debug_shows_the_traceback_wherever_it_stands() -> None:
    for arguments in (["--debug", "generate"], ["generate", "--debug"]):
        done = run(*arguments)
        assert isinstance(done.exception, ValueError)
        assert done.exit_code == 1


def test_defects_of_ours_are_not_hidden() -> None:
    assert advice(KeyError("x")) is None
    assert advice(RuntimeError("x")) is None
    assert advice(ValueError("mend this")) == "mend this"
    assert advice(FloatingPointError("loss is nan")) == "loss is nan"
    missing = advice(ModuleNotFoundError("No module named 'webdataset'"))
    assert missing == "No module named 'webdataset'. It belongs to an extra: pip install 'diffusemble[train,evaluate]'."


@pytest.mark.slow
def test_interrupting_is_graceful(folders: tuple[str, ...], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "diffusemble", "generate", "x", "-e", folders[0], "--steps", "999", "-o", "out"]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    drawing = subprocess.Popen(command, cwd=tmp_path, **pipes)
    signal.signal(signal.SIGINT, before)
    with drawing:
        while not _imported(drawing.pid):
            time.sleep(0.1)
        os.kill(drawing.pid, signal.SIGINT)
        out, err = drawing.communicate(timeout=120)
    assert drawing.returncode == 130
    assert (out, err) == ("", "error: interrupted\n")
    assert not (tmp_path / "out").exists()


def _imported(pid: int) -> bool:
    """Whether a process has come as far as loading torch."""
    return "libtorch" in Path(f"/proc/{pid}/maps").read_text()


def test_version_and_usage() -> None:
    assert run("--version").output == f"{__version__}\n"
    assert run("generat").exit_code == 2


def test_describe_prints_experts_points_and_costs(folders: tuple[str, ...], trained: str) -> None:
    done = run("describe", *folders, "--size", "32x24")
    assert done.exit_code == 0, done.output
    for text in (
        "rock",
        "fern",
        "UNet2DConditionModel",
        "53.28 k",
        "down.0.downsample",
        "12 x 16",
        "2.00 x one expert",
    ):
        assert text in done.output
    whole = run("describe", trained)
    assert "sabw (points all, width 16" in whole.output


def test_a_base_gives_single_files_what_they_lack(folders: tuple[str, ...], tmp_path: Path) -> None:
    file = save_ldm(small_pipeline(1), tmp_path / "moss.safetensors", without=("vae",))
    done = run("describe", file, "--base", folders[0])
    assert done.exit_code == 0, done.output
    assert "moss" in done.output


def test_without_a_terminal_long_runs_leave_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr("diffusemble.app.terminal.monotonic", lambda: now)
    with progress_bar("starting") as tell:
        for step in range(1, 6):
            now += QUIET / 2
            tell(step / 5, f"steps {step}")
    assert capsys.readouterr().err == " 40%  steps 2\n 80%  steps 4\n"


def test_the_zoo_is_listed() -> None:
    done = run("zoo")
    assert done.exit_code == 0
    assert all(f"zoo:{name}" in done.output for name in ("base", "people", "animals", "things", "topics"))


@pytest.mark.parametrize(
    ("number", "as_parameters", "as_operations"),
    [(950, "950", "950 FLOP"), (859_520_964, "859.5 M", "859.5 MFLOP"), (803_273_441_280, "803.3 B", "803.3 GFLOP")],
)
def test_numbers_are_readable(number: int, as_parameters: str, as_operations: str) -> None:
    assert (count(number), operations(number)) == (as_parameters, as_operations)
