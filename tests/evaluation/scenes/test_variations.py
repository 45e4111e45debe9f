"""Sets of systems that differ in one thing."""

from __future__ import annotations

import pytest

from diffusemble.evaluation.protocols import load_evaluation
from diffusemble.evaluation.scenes.config import ScenesConfig
from diffusemble.evaluation.scenes.page import command
from diffusemble.evaluation.scenes.systems import THREE
from diffusemble.evaluation.scenes.variations import VARIATIONS, usual
from diffusemble.settings import dump_config, load_config


@pytest.mark.parametrize("name", VARIATIONS)
def test_a_set_is_compared_with_the_defaults_and_its_names_are_its_own(name: str) -> None:
    config = load_evaluation("scenes", None, [f"vary={name}", "count=4"])
    assert isinstance(config, ScenesConfig)
    assert config.systems[0] == usual(THREE)
    assert config.compared == "amdm"
    assert command(config) == f"diffusemble evaluate --protocol scenes vary={name} count=4"
    marks = [system.model_dump_json(exclude={"name", "title"}) for system in config.systems]
    assert len(set(marks)) >= len(marks) - (name == "bases")  # the usual base is one of them


def test_two_members_make_a_set_as_well() -> None:
    config = ScenesConfig.model_validate({"vary": "members", "kinds": ["migc", "image-prompt"]})
    assert [system.name for system in config.systems] == ["amdm", "migc", "image-prompt", "migc+image-prompt"]
    assert command(config).endswith("vary=members kinds=[migc,image-prompt]")


def test_windows_follow_the_number_of_steps() -> None:
    by_name = {system.name: system for system in VARIATIONS["windows"](THREE, 30)}
    assert {member.window for member in by_name["middle"].members[1:]} == {(10, 19)}
    assert {member.window for member in by_name["late"].members[1:]} == {(20, 29)}
    assert all(system.members[0].window is None for system in by_name.values())
    assert all(tuple(member.kind for member in system.members) == THREE for system in by_name.values())


def test_weights_are_of_unit_norm() -> None:
    for system in VARIATIONS["weights"](THREE, 20):
        assert sum(float(member.weight or 0) ** 2 for member in system.members) == pytest.approx(1)


def test_a_set_is_read_back_as_it_was_written(tmp_path) -> None:
    config = ScenesConfig(vary="lengths", steps=10)  # type: ignore[arg-type]
    file = tmp_path / "run.yaml"
    file.write_text(dump_config(config))
    assert load_config(ScenesConfig, file) == config


def test_an_unknown_set_is_refused() -> None:
    with pytest.raises(ValueError, match="vary"):
        load_evaluation("scenes", None, ["vary=colours"])
