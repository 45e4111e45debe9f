"""What the commands ``evaluate`` and ``report`` do: measure by any protocol, and redraw pages from stored scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffusemble.config.places import check_folder
from diffusemble.evaluation.benchmark import CONFIG_FILE, evaluate, prepare
from diffusemble.evaluation.coco_mig.protocol import evaluate_coco_mig, redraw_coco_mig
from diffusemble.evaluation.config import EvaluateConfig, PicturesConfig, SystemConfig
from diffusemble.evaluation.gallery import Gallery
from diffusemble.evaluation.page import check_page
from diffusemble.evaluation.parquet import picture_table
from diffusemble.evaluation.picture_report import write_picture_report
from diffusemble.evaluation.picture_results import PictureResults, summarise_pictures
from diffusemble.evaluation.picture_scores import PictureBench, read_picture_scores
from diffusemble.evaluation.prompts import hash_of, read_prompts
from diffusemble.evaluation.protocols import Config, load_evaluation
from diffusemble.evaluation.report import write_report
from diffusemble.evaluation.results import summarise
from diffusemble.evaluation.scenes.config import CocoMigConfig, ScenesConfig
from diffusemble.evaluation.scenes.protocol import evaluate_scenes, redraw_scenes
from diffusemble.evaluation.scores import Tell
from diffusemble.evaluation.shards import launched
from diffusemble.evaluation.store import RUN_FILE, stored
from diffusemble.evaluation.stored import read_scores


def measure(config: Config, tell: Tell = lambda share, what: None) -> Any:
    """Measure by the configuration's protocol, keep the scores, write the page; gives what the protocol's own does.

    Raises:
        ValueError: scores or page cannot be written where the configuration says; or see the protocol's own.
    """
    check_folder(config.out, "out")
    check_page(Path(config.report))
    if isinstance(config, ScenesConfig):
        return evaluate_scenes(config, tell)
    if isinstance(config, CocoMigConfig):
        return evaluate_coco_mig(config, tell)
    return evaluate(config, tell) if isinstance(config, EvaluateConfig) else evaluate_pictures(config, tell)


def evaluate_pictures(config: PicturesConfig, tell: Tell = lambda share, what: None) -> PictureResults:
    """Draw every prompt with every system, score the pictures, write the page.

    Under ``accelerate launch`` the processes share the work, and the first one writes the page.

    Args:
        config: see ``PicturesConfig``. What ``config.out`` already holds is neither drawn nor scored again.
        tell: told how far it is, 0 to 1, and what is being done.

    Raises:
        ValueError: prompts, systems or reference pictures that cannot be read, or a folder with another run's scores.
        FileNotFoundError: the weights of a metric are missing.
    """
    with launched(config.device == "cpu") as shards:
        prompts = read_prompts(config)
        tell(0.0, "loading")
        ready = prepare(config, shards, {"prompts": hash_of(prompts)})
        gallery = Gallery(config, prompts, {**ready.notes, "identity": ready.identity})
        bench = PictureBench(gallery, ready.systems, ready.store, shards, ready.ensemble.device)
        bench.check()
        scores = bench.measure(tell)
        results = summarise_pictures(scores, config)
        if shards.main:
            picture_table(read_picture_scores(ready.store, config)).write(Path(config.out))
            write_picture_report(results, scores, config, ready.notes)
        tell(1.0, f"written: {config.report}")
    return results


def redraw(folder: str | Path, report: str | Path | None = None, systems: tuple[str, ...] = ()) -> Path:
    """Write the page, tables and figures of an evaluation again from its stored scores; no model is loaded.

    Args:
        folder: ``out`` of the evaluation.
        report: the page to write; that of the evaluation by default.
        systems: names of those to show, in this order; all that were measured to the end by default.

    Raises:
        ValueError: the folder holds no scores, or none of a system.
    """
    folder = Path(folder)
    store = stored(folder)
    changes: dict[str, Any] = {"out": str(folder), **({} if report is None else {"report": str(report)})}
    config = load_evaluation(None, folder / CONFIG_FILE, (), **changes)
    check_page(Path(config.report))
    if isinstance(config, ScenesConfig):
        return redraw_scenes(config, systems)
    if isinstance(config, CocoMigConfig):
        return redraw_coco_mig(config, systems)
    if systems:
        shown = tuple(SystemConfig(name=name) for name in systems)
        config = config.model_copy(update={"systems": shown})
    notes = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))["notes"]
    if isinstance(config, EvaluateConfig):
        scores = read_scores(store, systems)
        return write_report(summarise(scores, config), scores, config, notes)
    drawn = read_picture_scores(store, config, systems)
    return write_picture_report(summarise_pictures(drawn, config), drawn, config, notes)
