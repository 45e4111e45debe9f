"""The laws, for every row of the table whose experts all run (see test_every_router.py for the others)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffusemble.aggregators.base import Aggregator
from diffusemble.registry import AGGREGATORS
from law_cases import CASES, EXCEPTIONS
from laws import LAWS, what_is_saved_is_loaded

HOLDS = [(law, name) for law in LAWS for name in CASES if law.__name__ not in EXCEPTIONS.get(name, {})]
FAILS = [(law, name) for law in LAWS for name in CASES if law.__name__ in EXCEPTIONS.get(name, {})]


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


def test_every_row_has_its_case():
    rows = [name for name, entry in AGGREGATORS.items() if issubclass(entry.load(), Aggregator)]
    assert {row for row, _ in CASES.values()} == set(rows)


@pytest.mark.parametrize("name", CASES)
def test_what_is_saved_is_loaded(name: str, tmp_path: Path):
    what_is_saved_is_loaded(name, tmp_path)
