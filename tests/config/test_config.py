from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from diffusemble.config.ensemble import AggregatorConfig, EnsembleConfig
from diffusemble.config.generate import AttentionConfig, GenerateConfig, MadeWith
from diffusemble.config.schema import Schema
from diffusemble.scene.config import SceneConfig
from diffusemble.settings import dump_config, load_config
from diffusemble.training.config import TrainConfig


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "run.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_the_defaults_are_those_of_the_paper() -> None:
    config = GenerateConfig(prompts="a tiger")
    assert (config.steps, config.guidance, config.scheduler) == (50, 7.5, "ddim")
    assert (config.experts, config.seeds, config.prompts) == (("zoo:topics",), (0,), ("a tiger",))


def test_settings_lie_over_the_file_and_overrides_over_both(tmp_path: Path) -> None:
    file = written(tmp_path, "prompts: [a, b]\nsteps: 10\nguidance: 3\nscheduler: euler\n")
    config = load_config(GenerateConfig, file, ["guidance=5", "seeds=[4, 5]"], steps=20, guidance=4)
    assert (config.steps, config.guidance, config.scheduler, config.seeds) == (20, 5.0, "euler", (4, 5))


def test_dotted_overrides_reach_into_nested_keys() -> None:
    overrides = ["prompts=x", "aggregator.name=mean", "aggregator.options.points=last", "attention.steps=[1, 3]"]
    config = load_config(GenerateConfig, None, overrides, attention=True)
    assert config.aggregator == AggregatorConfig(name="mean", options={"points": "last"})
    assert config.attention == AttentionConfig(steps=(1, 3))


def test_short_forms() -> None:
    config = GenerateConfig(prompts=["x"], aggregator="sabw", attention=True, seeds=3, experts="a.safetensors")
    assert config.aggregator == AggregatorConfig(name="sabw")
    options = load_config(GenerateConfig, None, ["prompts=x", "aggregator.options.points=last"])
    assert options.aggregator == AggregatorConfig(name="mean", options={"points": "last"})
    assert (config.attention, config.seeds, config.experts) == (AttentionConfig(), (3,), ("a.safetensors",))
    assert GenerateConfig(prompts="x", attention=False).attention is None


@pytest.mark.parametrize(
    "config",
    [
        GenerateConfig(prompts=("a: b", "ä # [x]", "null", ""), ensemble="folder", attention=True, seeds=(1, 2)),
        GenerateConfig(prompts="x", aggregator={"name": "sabw", "options": {"points": [0, 24]}}, height=64, width=72),
        EnsembleConfig(experts=("a", "b")),
    ],
)
def test_a_written_configuration_reads_back_equal(tmp_path: Path, config: EnsembleConfig) -> None:
    assert load_config(type(config), written(tmp_path, dump_config(config))) == config


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["guidence=4"], r"no key 'guidence' \(value 4\) \(did you mean 'guidance'\?\). Keys: experts, .* steps"),
        (["attention.point=mid"], r"no key 'attention.point' .*\(did you mean 'points'\?\). Keys: points, steps\."),
        (["aggregator.nam=mean"], r"(?s)no key 'aggregator.nam'.*did you mean 'name'"),
        (["scheduler=ddmi"], r"scheduler: there is no scheduler 'ddmi' \(did you mean 'ddim'\?\). Choose .* euler"),
        (["aggregator=sabv"], r"aggregator.name: there is no aggregator 'sabv' \(did you mean 'sabw'\?\)"),
        (["height=63"], r"height must be a multiple of 8; got 63"),
        (["steps=0"], r"steps must be greater than or equal to 1; got 0"),
        (["steps=many"], r"steps must be a valid integer.*; got 'many'"),
        (["dtype=float8"], r"dtype must be 'auto', 'float32', 'float16' or 'bfloat16'; got 'float8'"),
        (["prompts=[]"], r"prompts must have at least 1 item.*; got \[\]"),
        (["prompts=null"], r"prompts must be a valid tuple; got None"),
        (["seeds=[-1]"], r"seeds.0 must be greater than or equal to 0; got -1"),
        (["steps"], r"look like key=value; got 'steps'"),
        (["steps=3", "steps.a=3"], r"steps.a: 'steps' is 3, which has no keys inside"),
        (["negative=[a"], r"the value of 'negative' is no valid YAML"),
        (
            ["ensemble=folder", "experts=[a, b]"],
            r"a saved ensemble brings its own experts and aggregator; leave 'experts'",
        ),
        (["ensemble=folder", "aggregator=mean"], r"leave 'experts', 'base', 'vae', 'level' and 'aggregator' out"),
    ],
)
def test_mistakes_are_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(GenerateConfig, None, ["prompts=x", *overrides])


def test_a_missing_key_is_named_with_its_file(tmp_path: Path) -> None:
    file = written(tmp_path, "steps: 3\n")
    with pytest.raises(ValueError, match=r"run.yaml: the key 'prompts' is missing"):
        load_config(GenerateConfig, file)


@pytest.mark.parametrize(
    ("text", "message"),
    [("just words", "must hold keys and values .* it holds str: 'just words'"), ("a: [", "is no valid YAML")],
)
def test_files_without_a_configuration_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(GenerateConfig, written(tmp_path, text))


def test_the_keys_there_are_stand_once_behind_all_that_there_are_not() -> None:
    with pytest.raises(ValueError, match=r"(?s)no key 'attention.s'.*no key 'stepz'.*no key 'seedz'") as caught:
        load_config(GenerateConfig, None, ["prompts=x", "stepz=1", "attention.s=1", "seedz=1"])
    assert ["Keys: " in line for line in str(caught.value).splitlines()] == [True, False, True]


@pytest.mark.parametrize(
    ("model", "give"),
    [
        (GenerateConfig, r"Give a YAML file, or a picture that `diffusemble generate` drew\."),
        (SceneConfig, r"Give a YAML file, or a picture that `diffusemble control` drew\."),
        (TrainConfig, r"Give a YAML file\.$"),
    ],
)
def test_files_that_are_none_are_named_with_what_to_give(tmp_path: Path, model: type[Schema], give: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\xbb\x03" + bytes(6) + b"{}")
    for name, what in (
        ("modal.safetensors", r"There is no file .* \(did you mean 'model.safetensors'\?\)\."),
        ("model.safetensors", r"model\.safetensors is no text, so it is no configuration\."),
        ("", r"is a folder\."),
    ):
        with pytest.raises(ValueError, match=rf"{what} {give}"):
            load_config(model, tmp_path / name)


def test_what_another_command_drew_is_named_by_it(tmp_path: Path) -> None:
    made = MadeWith(versions={}, device="", aggregator="", experts=())
    for config, others, by in (
        (GenerateConfig(prompts="x", made_with=made), (SceneConfig, TrainConfig), "generate"),
        (SceneConfig(made_with=dict(made)), (GenerateConfig, TrainConfig), "control"),
    ):
        file = written(tmp_path, dump_config(config))
        assert load_config(type(config), file) == config
        for other in others:
            with pytest.raises(ValueError, match=rf"was drawn by `diffusemble {by}`, which has other keys"):
                load_config(other, file)


def test_checking_a_configuration_does_not_import_torch() -> None:
    code = (
        "import sys; from diffusemble import GenerateConfig; from diffusemble.settings import load_config;"
        "load_config(GenerateConfig, None, ['prompts=x']); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
