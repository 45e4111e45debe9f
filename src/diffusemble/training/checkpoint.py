"""What a run needs to go on exactly where it was, and the result it leaves."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from diffusemble.aggregators.storage import load_aggregator
from diffusemble.config.changes import first_change
from diffusemble.config.places import check_folder
from diffusemble.ensembles.base import Ensemble
from diffusemble.experts.adapters import adapter_files, refill_adapter
from diffusemble.experts.reference import WEIGHTS_FILE
from diffusemble.training.config import RunConfig
from diffusemble.training.files import StorageError, replace_file, sync

FILE = "checkpoint.pt"


def save_checkpoint(folder: Path, state: Mapping[str, Any]) -> None:
    """Replace ``folder/checkpoint.pt``; a kill, or a full disk, leaves the one before.

    Raises:
        StorageError: it could not be written.
    """
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    replace_file(folder / FILE, buffer.getvalue())


def load_checkpoint(folder: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """State of the run in ``folder``; ``None`` when there is none.

    Raises:
        ValueError: the file is damaged, or belongs to a run with other settings than ``identity``.
    """
    state = _read(folder / FILE)
    if state is not None:
        _refuse_another(folder, identity, state["identity"], identity.keys() | state["identity"].keys())
    return state


def check_places(config: RunConfig) -> None:
    """Make sure, before experts are loaded, that a run can leave what it leaves.

    Raises:
        ValueError: see ``check_folder``.
    """
    check_folder(config.output, "output")
    check_folder(config.cache_folder, "cache")


def refuse_another_run(folder: Path, known: Mapping[str, Any]) -> None:
    """Make sure that a run in ``folder`` is this one, as far as the part of its identity goes that is ``known``.

    Raises:
        ValueError: see ``load_checkpoint``.
    """
    state = _read(folder / FILE)
    if state is not None:
        _refuse_another(folder, known, state["identity"], known.keys())


def export(ensemble: Ensemble, folder: Path) -> None:
    """Write what ``save_pretrained`` writes, every file whole or not at all.

    Raises:
        StorageError: it could not be written.
    """
    scratch = folder.with_name(f".{folder.name}.export")  # beside it, so that relative references hold
    try:
        folder.mkdir(parents=True, exist_ok=True)
        ensemble.save_pretrained(scratch)
        for file in sorted(scratch.iterdir()):
            sync(file)
            os.replace(file, folder / file.name)
        sync(folder)
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"Could not write the ensemble to {folder}: {error}. What was there before is untouched. Free some space "
            f"and run the same command again: it goes on from the last checkpoint."
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def restore(ensemble: Ensemble, folder: Path) -> None:
    """Put the weights that ``export`` wrote of this ensemble back into it."""
    ensemble.aggregator.load_state_dict(load_aggregator(folder / WEIGHTS_FILE).state_dict())
    for denoiser, file in adapter_files(ensemble.denoisers, folder):
        refill_adapter(denoiser, file)


def _read(file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the bytes happen to mean to the unpickler
        raise ValueError(f"{file} is damaged ({str(error)[:120]}). Remove it to start this run again.") from error
    return state


def _refuse_another(folder: Path, now: Mapping[str, Any], then: Mapping[str, Any], keys: Iterable[str]) -> None:
    change = first_change(then, now, sorted(keys))
    if change is not None:
        raise ValueError(
            f"{folder} holds a run that was started with another {change.what}: {change.then}, now {change.now}. Give "
            f"what it was started with to go on with it, or another output folder to start a new run."
        )
