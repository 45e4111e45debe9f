"""The ensembles that were trained on the zoo's groups."""

from __future__ import annotations

from pathlib import Path

from diffusemble.zoo.experts import WEIGHTS


def trained_ensemble(group: str) -> Path | None:
    """Folder of the saved ensemble that ships for a group of experts, for ``EnsembleDenoiser.from_pretrained``.

    None if the zoo has none under that name.
    """
    folder = WEIGHTS / "ensembles" / group
    return folder if (folder / "ensemble.json").is_file() else None
