"""The schema of scenes: what it fills in, and what it refuses with which words."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from diffusemble.scene.config import InstanceConfig, SceneConfig
from diffusemble.scene.member_config import MemberConfig
from diffusemble.settings import dump_config, load_config

CAT = {"name": "cat", "box": [0.1, 0.1, 0.5, 0.5]}
BOX = {"name": "box", "box": [0.5, 0.5, 0.9, 0.9]}
ON = {"subject": "cat", "action": "on", "object": "box"}


def scene(**settings: Any) -> SceneConfig:
    return SceneConfig(**{"instances": [CAT, BOX], **settings})


@pytest.mark.parametrize(
    ("settings", "kinds"),
    [
        ({}, ["migc"]),
        ({"relations": [ON]}, ["interaction"]),
        ({"relations": [ON], "instances": [{**CAT, "attribute": "red"}, BOX]}, ["interaction", "migc"]),
        ({"relations": [ON], "reference": "style.png"}, ["interaction", "image-prompt"]),
        ({"instances": [], "reference": "style.png"}, ["image-prompt"]),
        ({"instances": [], "prompt": "a cat"}, ["plain"]),
        ({"members": ["gligen", "plain"], "relations": [ON]}, ["gligen", "plain"]),
    ],
)
def test_without_members_those_take_part_that_have_something_to_do(settings: dict[str, Any], kinds: list[str]) -> None:
    assert [member.kind for member in scene(**settings).cast] == kinds


@pytest.mark.parametrize(
    ("text", "kind", "source", "name"),
    [
        ("migc", "migc", None, "migc"),
        ("zoo:animals", "model", "zoo:animals", "animals"),
        ("some/model", "model", "some/model", "model"),
        ("a.safetensors", "model", "a.safetensors", "a"),
        ("model:folder", "model", "folder", "folder"),
        ("ensemble:zoo:topics", "ensemble", "zoo:topics", "topics"),
        ("gligen:a/b.safetensors", "gligen", "a/b.safetensors", "gligen"),
    ],
)
def test_members_as_text(text: str, kind: str, source: str | None, name: str) -> None:
    member = MemberConfig.model_validate(text)
    assert (member.kind, member.source, member.name) == (kind, source, name)


@pytest.mark.parametrize(
    ("phrase", "attribute", "words"),
    [
        ("a cat", "red", "a red cat"),
        ("a cat", "orange", "an orange cat"),
        ("an owl", "red", "a red owl"),
        ("the cat", "red", "the red cat"),
        ("two cats", "red", "red two cats"),
        ("a cat", "", "a cat"),
        ("", "red", "red puss"),
        ("another cat", "red", "red another cat"),
    ],
)
def test_attributes_stand_behind_the_article(phrase: str, attribute: str, words: str) -> None:
    assert InstanceConfig(name="puss", phrase=phrase, attribute=attribute, box=(0, 0, 1, 1)).described == words


def test_a_phrase_alone_is_its_own_name_and_a_scene_without_prompt_says_its_things() -> None:
    made = scene(instances=[{"phrase": "a cat", "box": [0, 0, 1, 1], "attribute": "red"}, BOX])
    assert made.instances[0].name == "a cat"
    assert made.words == "a red cat, box"
    assert scene(prompt="something else").words == "something else"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"instances": [{**CAT, "box": [0, 0, 1.2, 1]}]}, "given in shares of the picture, 0 to 1; that of 'cat' is"),
        ({"instances": [{**CAT, "box": [0.5, 0, 0.5, 1]}]}, "which has x1 >= x2 or y1 >= y2"),
        ({"instances": [{**CAT, "box": [0.5, 0, 0.9]}]}, "A box has four numbers x1, y1, x2, y2; that of 'cat' has 3"),
        ({"instances": [{"phrase": "a cat"}]}, "instances.0: a phrase needs its place; 'a cat' has no box. Give box:"),
        ({"instances": [CAT, CAT]}, "two instances are called 'cat'; give each its own name."),
        (
            {"relations": [{**ON, "object": "bax"}]},
            "its object 'bax' is no instance (did you mean 'box'?)",
        ),
        ({"instances": [], "relations": [ON]}, "its subject 'cat' is no instance. The instances are: none."),
        ({"relations": [{"subject": "cat", "object": "box"}]}, "the key 'relations.0.action' is missing"),
        ({"members": ["mig"]}, "there is no kind of member 'mig' (did you mean 'migc'?). Choose one of: interaction,"),
        ({"members": ["migc", "migc"]}, "two members are called 'migc'; give each its own name"),
        ({"members": ["image-prompt"]}, "'image-prompt' has nothing to do: the scene has no reference. Give some, or"),
        ({"members": ["migc"], "instances": []}, "member 'migc' has nothing to do: the scene has no instances"),
        ({"members": [{"kind": "model"}]}, "the model 'model' needs its source; write model:FOLDER"),
        ({"members": [{"kind": "migc", "wieght": 1}]}, "there is no key 'members.0.wieght' (value 1) (did you mean"),
        ({"members": [{"kind": "migc", "window": 2.5}]}, "window"),
        ({"combine": "amd"}, "there is no way to combine members 'amd' (did you mean 'amdm'?)"),
        ({"scheduler": "ddmi"}, "there is no scheduler 'ddmi' (did you mean 'ddim'?)"),
        ({"relatons": []}, "there is no key 'relatons' (value []) (did you mean 'relations'?)"),
        ({"steps": 0}, "steps must be greater than or equal to 1; got 0"),
    ],
)
def test_mistakes_are_explained(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "scene.yaml"
    file.write_text(yaml.safe_dump({"instances": [CAT, BOX], **settings}))
    with pytest.raises(ValueError) as caught:
        load_config(SceneConfig, file)
    assert message in str(caught.value)
    assert ".." not in str(caught.value).replace("...", "")


def test_a_scene_survives_being_written() -> None:
    made = scene(
        relations=[ON],
        reference="style.png",
        members=["interaction", {"kind": "migc", "window": [1, 3], "weight": 0.7}, {"kind": "plain", "window": 0.5}],
        combine={"name": "amdm", "options": {"mix": "unit"}},
    )
    assert SceneConfig(**yaml.safe_load(dump_config(made))) == made


def test_the_schema_loads_without_torch() -> None:
    code = "import sys, diffusemble.scene.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
