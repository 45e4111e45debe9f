"""One command per study: from its name and its settings to its page."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from diffusemble.config.places import check_folder
from diffusemble.evaluation.benchmark import machine_notes
from diffusemble.evaluation.studies.config import StudyConfig
from diffusemble.evaluation.studies.findings import Findings
from diffusemble.evaluation.studies.lab import Lab, Tell
from diffusemble.evaluation.studies.page import write_page
from diffusemble.registry import STUDIES, lookup


def run_study(name: str, config: StudyConfig, tell: Tell = lambda share, what: None) -> tuple[Findings, Path]:
    """Run a study, or redraw its page from scores that are kept.

    Args:
        name: a row of ``registry.STUDIES``.
        config: of the study's own class, ``studies.config.CONFIGS[name]``.
        tell: told how far it is, 0 to 1, and what is being done.

    Returns:
        What was found, and the page it was written to.

    Raises:
        ValueError: unknown study or setting, or an empty split.
        FileNotFoundError: an ensemble, the pictures, or a scorer's weights are missing.
    """
    study = lookup(STUDIES, name, "study")
    check_folder(config.out, "out")
    check_folder(Path(config.docs) / name, "docs")
    if config.threads:
        torch.set_num_threads(config.threads)
    started = time.monotonic()
    lab = Lab(config, tell)
    findings: Findings = study(config, lab)
    page = write_page(name, config, findings, machine_notes(lab.ensemble), (time.monotonic() - started) / 60)
    tell(1.0, f"written: {page}")
    return findings, page
