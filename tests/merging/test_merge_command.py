"""``diffusemble merge`` on the command line."""

from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from diffusemble.app.cli import app
from tests.adapter_files import kohya, write
from tests.merging.checkpoints import M00, checkpoint, weights


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["merge", *map(str, arguments)], env={"COLUMNS": "200"})


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("abc"):
        checkpoint(tmp_path / f"{name}.safetensors", seed)


def test_it_says_what_it_did_and_how_to_draw() -> None:
    done = run("a.safetensors", "b.safetensors", "--set", "shares=[1,3]", "--out", "out.safetensors")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [
        "merged    out.safetensors",
        "by        weighted of a.safetensors, b.safetensors",
        "holds     27 tensors of the file",
        'draw:     diffusemble generate "a prompt" --experts out.safetensors --base FOLDER_OF_ITS_ARCHITECTURE',
    ]
    assert (load_file("out.safetensors")[M00] - (weights(0)[M00] + 3 * weights(1)[M00]) / 4).abs().max() < 1e-6


def test_recipes_are_files_and_flags_go_on_top(tmp_path: Path) -> None:
    recipe = {"experts": ["a.safetensors", "b.safetensors"], "method": "ties", "base": "c.safetensors", "out": "x"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "options": {"density": 0.5}}))
    done = run("-c", "recipe.yaml", "-o", "out.safetensors", "--set", "scale=0", "--set", "dtype=float16")
    assert done.exit_code == 0, done.output
    assert "by        ties of a.safetensors, b.safetensors, from c.safetensors" in done.stdout
    assert (load_file("out.safetensors")[M00] == weights(2)[M00].half()).all()


def test_a_lora_among_the_models_is_called_one(tmp_path: Path) -> None:
    write(kohya({"lora_unet_mid_block_attentions_0_proj_in": (4, 4)}), tmp_path / "ink.safetensors")
    done = run("a.safetensors", "b.safetensors", "ink.safetensors", "-o", "out.safetensors")
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ink.safetensors is a LoRA, which goes on top of a model and is none to merge")
    assert "(merged.safetensors+ink.safetensors)" in done.stderr
    based = run("a.safetensors", "b.safetensors", "-m", "ties", "--base", "ink.safetensors", "-o", "out.safetensors")
    assert "ink.safetensors is a LoRA" in based.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "x.safetensors"], "the key 'experts' is missing"),
        (["a.safetensors", "b.safetensors"], "the key 'out' is missing"),
        (["a.safetensors", "-o", "x.safetensors"], "Weighted merges two experts or more; got 1"),
        (["a.safetensors", "b.safetensors", "-o", "a.safetensors"], "a.safetensors exists already"),
        (
            ["a.safetensors", "b.safetensors", "-o", "x.safetensors", "-m", "tie"],
            "there is no method 'tie' (did you mean",
        ),
        (["a.safetensors", "b.safetensors", "-o", "x.safetensors", "--set", "share=1"], "(did you mean 'shares'?)"),
        (["a.safetensors", "b.safetensors", "-o", "x.safetensors", "--set", "blocks=GRIT"], "GRIT"),
        (["a.safetensors", "b.safetensors", "-o", "out"], "with the key out, or --out: out.safetensors."),
        (["a.safetensors", "d.safetensors", "-o", "x.safetensors"], "There is no file or folder d.safetensors"),
    ],
)
def test_mistakes_are_one_message(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
