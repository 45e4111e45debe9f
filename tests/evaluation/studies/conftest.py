"""Tiny experts, pictures and a recipe, for studies that take seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.evaluation.studies.quick import RECIPE
from tests.evaluation.tiny_zoo import save_tiny_ensemble, write_pictures


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``pictures``, ``ensemble`` and ``recipe.yaml``."""
    folder = tmp_path_factory.mktemp("studies")
    write_pictures(folder / "pictures")
    save_tiny_ensemble(folder)
    (folder / "recipe.yaml").write_text(RECIPE.format(pictures=folder / "pictures"))
    return folder
