"""Make the zoo: `python -m recipes.zoo` runs every stage in order, or only the ones named (`scenes`: all of its own).

Each stage skips what is done and goes on from its last checkpoint when it was interrupted.
"""

from __future__ import annotations

import importlib
import logging
import sys

from recipes.zoo.settings import WORK

STAGES = (
    "data",
    "unseen",
    "views",
    "vae",
    "text",
    "unet",
    "experts",
    "pack",
    "ensemble",
    "report",
    "prompt_match",
    "style_probe",
    "scenes.data",
    "scenes.base",
    "scenes.probe",
    "controls.image_encoder",
    "controls.interaction",
    "controls.migc",
    "controls.image_prompt",
    "controls.pack",
    "controls.report",
)


def main(names: list[str]) -> None:
    """Run stages by name; all of them when none is named."""
    chosen = {name: [stage for stage in STAGES if stage == name or stage.startswith(f"{name}.")] for name in names}
    unknown = [name for name, stages in chosen.items() if not stages]
    if unknown:
        raise SystemExit(f"the stages are {', '.join(STAGES)}; not {', '.join(unknown)}")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for stage in [stage for stages in chosen.values() for stage in stages] or STAGES:
        logging.info("stage %s", stage)
        importlib.import_module(f"recipes.zoo.{stage}").make(WORK)


if __name__ == "__main__":
    main(sys.argv[1:])
