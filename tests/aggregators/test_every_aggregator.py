"""The laws, for every row of the table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffusemble.registry import AGGREGATORS
from laws import EXCEPTIONS, LAWS, what_is_saved_is_loaded

HOLDS = [(law, name) for law in LAWS for name in AGGREGATORS if law.__name__ not in EXCEPTIONS.get(name, {})]
FAILS = [(law, name) for law in LAWS for name in AGGREGATORS if law.__name__ in EXCEPTIONS.get(name, {})]


def named(value: Any) -> str:
    return value if isinstance(value, str) else value.__name__


@pytest.mark.parametrize(("law", "name"), HOLDS, ids=named)
def test_law(law: Callable[[str], None], name: str):
    law(name)


@pytest.mark.parametrize(("law", "name"), FAILS, ids=named)
def test_an_exception_is_needed(law: Callable[[str], None], name: str):
    with pytest.raises(AssertionError):
        law(name)


def test_exceptions_name_laws():
    laws = {law.__name__ for law in LAWS}
    assert all(EXCEPTIONS[name].keys() <= laws for name in EXCEPTIONS)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_what_is_saved_is_loaded(name: str, tmp_path: Path):
    what_is_saved_is_loaded(name, tmp_path)
