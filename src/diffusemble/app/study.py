"""`diffusemble study`: one command for each study."""

from __future__ import annotations

from typing import Annotated

import typer

from diffusemble.app.flags import Config, Settings
from diffusemble.app.terminal import hush_bars, out, progress_bar

Name = Annotated[str | None, typer.Argument(help="Which study; without a name they are listed.")]


def study(name: Name = None, settings: Settings = None, config: Config = None) -> None:
    """Run one of the studies and write its page; scores are kept, so an interrupted study goes on."""
    from diffusemble.config.schema import known
    from diffusemble.registry import STUDIES

    if name is None:
        for title, entry in STUDIES.items():
            out().print(f"{title:<12} {entry.title}", markup=False)
        return
    from diffusemble.evaluation.studies.config import CONFIGS
    from diffusemble.settings import load_config

    run = load_config(CONFIGS[known(STUDIES, name, "study")], config, settings or ())
    with progress_bar("starting") as tell:
        from diffusemble.evaluation.studies.run import run_study

        hush_bars()
        findings, page = run_study(name, run, tell)
    out().print(f"{findings.sentence}\npage  {page}", markup=False)
