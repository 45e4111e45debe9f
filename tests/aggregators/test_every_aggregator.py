"""The laws, for every row of the table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from diffusemble.registry import AGGREGATORS
from laws import LAWS, what_is_saved_is_loaded


@pytest.mark.parametrize("name", AGGREGATORS)
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_law(law: Callable[[str], None], name: str):
    law(name)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_what_is_saved_is_loaded(name: str, tmp_path: Path):
    what_is_saved_is_loaded(name, tmp_path)
