"""Public names of the package."""

from __future__ import annotations

from types import ModuleType

import pytest

from diffusemble import controls


@pytest.mark.parametrize("name", controls.__all__)
def test_a_public_name_stays_what_it_is_when_everything_is_imported(name: str) -> None:
    first = getattr(controls, name)
    assert not isinstance(first, ModuleType)
    assert getattr(controls, name) is first
