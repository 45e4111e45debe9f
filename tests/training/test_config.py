from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from diffusemble.training.config import TrainConfig
from training.small import small_config


def test_defaults_are_those_of_the_paper() -> None:
    config = TrainConfig.model_validate({"experts": "one", "data": {"path": "x"}, "output": "out"})
    assert (config.rate, config.weight_decay, config.batch, config.drop_prompt) == (1e-4, 0.01, 8, 0.1)
    assert (config.size, config.steps * config.batch) == (512, 100_000)
    assert config.experts == ("one",)
    assert config.cache_folder == Path("out/cache")


def test_parts_must_be_equal() -> None:
    with pytest.raises(ValidationError, match="got batch 4 and accumulate 3"):
        small_config(Path("data"), Path("out"), accumulate=3)


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(ValidationError, match="extra_forbidden"):
        small_config(Path("data"), Path("out"), held_out={"path": "x", "evry": 3})


def test_the_schema_needs_no_torch() -> None:
    code = "import sys, diffusemble.training.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
