from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from diffusemble.config.ensemble import AggregatorConfig
from diffusemble.settings import dump_config, load_config
from diffusemble.training.config import DataConfig, TrainConfig
from training.small import small_config


def test_defaults_are_those_of_the_paper() -> None:
    config = TrainConfig.model_validate({"experts": "one", "data": {"path": "x"}, "output": "out"})
    assert (config.rate, config.weight_decay, config.batch, config.drop_prompt) == (1e-4, 0.01, 8, 0.1)
    assert (config.size, config.steps * config.batch) == (512, 100_000)
    assert config.experts == ("one",)
    assert config.cache_folder == Path("out/cache")


def test_options_alone_are_those_of_the_default_aggregator() -> None:
    needed = ["experts=one", "data.path=x", "output=out"]
    small = load_config(TrainConfig, None, [*needed, "aggregator.options.preset=small"])
    assert small.aggregator == AggregatorConfig(name="sabw", options={"preset": "small"})
    assert load_config(TrainConfig, None, [*needed, "aggregator=mean"]).aggregator == AggregatorConfig(name="mean")


def test_parts_must_be_equal() -> None:
    with pytest.raises(ValidationError, match="got batch 4 and accumulate 3"):
        small_config(Path("data"), Path("out"), accumulate=3)


@pytest.mark.parametrize("changes", [{"keep": "best"}, {"patience": 2}])
def test_the_best_needs_a_measurement(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"go by the held-out loss, and there is no held_out. Name pictures"):
        small_config(Path("data"), Path("out"), held_out=None, **changes)


def test_timesteps_are_in_order() -> None:
    with pytest.raises(ValidationError, match=r"a first and a last one, such as \[0, 999\]; got \[7, 3\]"):
        small_config(Path("data"), Path("out"), timesteps=[7, 3])


def test_one_data_set_need_not_be_a_list(tmp_path: Path) -> None:
    one = small_config(Path("here"), tmp_path)
    assert one.data == (DataConfig(path="here", where={"split": "train"}),)
    (tmp_path / "config.yaml").write_text(dump_config(one))
    assert load_config(TrainConfig, tmp_path / "config.yaml") == one


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(ValidationError, match="extra_forbidden"):
        small_config(Path("data"), Path("out"), held_out={"path": "x", "evry": 3})


def test_the_schema_needs_no_torch() -> None:
    code = "import sys, diffusemble.training.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
