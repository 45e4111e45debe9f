from __future__ import annotations

from pathlib import Path

import pytest

from tiny import small_pipeline, tiny_text_encoder


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders ``rock``, ``fern`` and ``moss``: one VAE; the last two share their text encoder."""
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("rock", "fern", "moss")):
        small_pipeline(seed, text_encoder=tiny_text_encoder(min(seed, 1))).save_pretrained(root / name)
    return root
