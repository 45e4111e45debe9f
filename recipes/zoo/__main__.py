"""Make the zoo: `python -m recipes.zoo` runs every stage in order, or only the ones named.

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
)


def main(names: list[str]) -> None:
    """Run stages by name; all of them when none is named."""
    unknown = [name for name in names if name not in STAGES]
    if unknown:
        raise SystemExit(f"the stages are {', '.join(STAGES)}; not {', '.join(unknown)}")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for name in names or STAGES:
        logging.info("stage %s", name)
        importlib.import_module(f"recipes.zoo.{name}").make(WORK)


if __name__ == "__main__":
    main(sys.argv[1:])
