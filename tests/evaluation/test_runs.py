"""Protocols of drawn pictures from end to end, on tiny models: killed, resumed, shared, and redrawn from scores."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from pyarrow import parquet

from diffusemble.ensembles.block_level import EnsembleDenoiser
from diffusemble.evaluation.config import EvaluateConfig, PicturesConfig
from diffusemble.evaluation.gallery import Gallery
from diffusemble.evaluation.prompts import read_prompts
from diffusemble.evaluation.runs import evaluate_pictures, measure, redraw
from diffusemble.evaluation.shards import Shards
from diffusemble.evaluation.specs import choose_systems
from diffusemble.evaluation.statistics import kernel_distance
from diffusemble.pictures.metadata import read_document
from diffusemble.settings import dump_config
from tests.evaluation.tiny_zoo import save_tiny_ensemble, write_pictures

PROMPTS = ("bear, red style", "saw, blue style", "elf, red style")
SYSTEMS = ("expert-0", "expert-1", "noise-average", "ensemble")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_pictures(folder / "pictures")
    save_tiny_ensemble(folder)
    lines = [f'"{text}",{"animals" if text[0] == "b" else "others"}\n' for text in PROMPTS]
    (folder / "prompts.csv").write_text("Prompts,Category\n" + "".join(lines))
    return folder


def settings(folder: Path, name: str, **changes: Any) -> PicturesConfig:
    default: dict[str, Any] = {
        "protocol": "drawbench",
        "prompts": str(folder / "prompts.csv"),
        "column": "Prompts",
        "category": "Category",
        "ensemble": str(folder / "ensemble"),
        "references": str(folder / "pictures"),
        "systems": SYSTEMS,
        "out": str(folder / name),
        "report": str(folder / f"{name}.md"),
        "metrics": ("prompt-match", "kid-mobilenet"),
        "size": 16,
        "steps": 2,
        "images": 2,
        "bootstrap": 200,
        "device": "cpu",
        "threads": 1,
    }
    return PicturesConfig(**{**default, **changes})


@pytest.fixture(scope="module")
def config(folder: Path) -> PicturesConfig:
    config = settings(folder, "whole")
    evaluate_pictures(config)
    return config


def pictures(config: PicturesConfig) -> dict[str, str]:
    root = Path(config.out) / "pictures"
    found = {}
    for file in sorted(root.rglob("*.png")):
        with Image.open(file) as image:
            found[str(file.relative_to(root))] = hashlib.sha256(image.tobytes()).hexdigest()
    return found


def table(config: PicturesConfig) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = parquet.read_table(Path(config.out) / "scores.parquet").to_pylist()
    return rows


def test_pictures_know_how_they_were_made(config: PicturesConfig) -> None:
    assert len(pictures(config)) == 4 * 3 * 2
    document = yaml.safe_load(read_document(Path(config.out) / "pictures/ensemble/000003.png"))
    assert document["drawn"]["prompt"] == PROMPTS[1]
    assert document["evaluation"]["steps"] == 2
    assert "torch" in document["made_with"]["versions"]
    assert len(document["made_with"]["identity"]["experts"]) == 2


def test_scores_of_every_picture_are_in_one_table(config: PicturesConfig) -> None:
    rows = table(config)
    assert len(rows) == 4 * 6
    assert {row["system"] for row in rows} == set(SYSTEMS)
    assert {row["prompt"] for row in rows} == set(PROMPTS)
    assert {row["score"] for row in rows} == {"prompt-match"}
    assert all(np.isfinite(row["value"]) for row in rows)


def test_the_page_has_every_system_metric_and_category(config: PicturesConfig) -> None:
    page = Path(config.report)
    text = page.read_text()
    for part in ("DrawBench", "AFA ensemble", "noise average", "prompt-match on", "against each of the others"):
        assert part in text
    folder = page.with_suffix("")
    assert {"differences.png", "samples.webp"} <= {file.name for file in folder.iterdir()}
    stems = {file.stem for file in (folder / "tables").glob("*.tex")}
    assert stems == {"prompt-match", "prompt-match-by-category", "kid-mobilenet", "versus"}


def test_tables_hold_what_was_measured(config: PicturesConfig) -> None:
    results = evaluate_pictures(config)
    match, kid = results.metrics
    means = {name: np.mean([row["value"] for row in table(config) if row["system"] == name]) for name in match.scores}
    for name, score in match.scores.items():
        assert score.mean == pytest.approx(means[name])
        assert score.least <= score.mean <= score.most
    assert match.best == max(("expert-0", "expert-1"), key=lambda name: means[name])
    assert kid.best == min(("expert-0", "expert-1"), key=lambda name: kid.scores[name].mean)
    assert set(match.versus) == {"expert-0", "expert-1", "noise-average"}

    def features(name: str) -> np.ndarray:
        parts = sorted((Path(config.out) / "features/mobilenet-v2").glob(f"{name}-0*.npz"))
        return np.concatenate([np.load(part)["features"] for part in parts])

    expected = kernel_distance(features("ensemble"), features("reference"))
    assert kid.scores["ensemble"].mean == pytest.approx(expected, rel=1e-6)


def test_more_repeats_and_bigger_batches_leave_pictures_as_they_are(folder: Path, config: PicturesConfig) -> None:
    shutil.copytree(config.out, folder / "more")
    more = settings(folder, "more", repeats=2, metrics=("prompt-match",))
    before = pictures(more)
    evaluate_pictures(more)
    after = pictures(more)
    assert len(after) == 2 * len(before)
    assert all(after[name] == before[name] for name in before)
    batched = settings(folder, "batched", batch=4, systems=("ensemble",), metrics=("prompt-match",))
    evaluate_pictures(batched)
    for number in range(6):
        files = [Path(one.out) / f"pictures/ensemble/{number:06d}.png" for one in (config, batched)]
        one, other = (np.asarray(Image.open(file), dtype=int) for file in files)
        assert np.abs(one - other).max() <= 1


def test_shards_draw_every_picture_once(folder: Path, config: PicturesConfig) -> None:
    shared = settings(folder, "shared", systems=("expert-0",))
    experts = EnsembleDenoiser.from_pretrained(folder / "ensemble").eval()
    systems = choose_systems(shared, experts).systems
    gallery = Gallery(shared, read_prompts(shared), {})
    drawn: list[set[str]] = []
    for rank in range(2):
        before = set(pictures(shared))
        gallery.draw(systems, Shards(rank, 2), lambda share, what: None)
        drawn.append(set(pictures(shared)) - before)
    assert [len(one) for one in drawn] == [3, 3]
    whole = {name: value for name, value in pictures(config).items() if name.startswith("expert-0/")}
    assert set(pictures(shared)) == set(whole)


def test_report_redraws_all_of_it_without_any_model(folder: Path, config: PicturesConfig, tmp_path: Path) -> None:
    shutil.copytree(config.out, tmp_path / "out")
    run = settings(folder, "x", out=str(tmp_path / "out"), report=str(tmp_path / "page.md"), ensemble="runs/lost")
    (tmp_path / "out/config.yaml").write_text(dump_config(run))
    shutil.rmtree(tmp_path / "out/pictures")
    page = redraw(tmp_path / "out")
    old, new = Path(config.report).read_text().splitlines(), page.read_text().splitlines()
    assert [line for line in new if line.startswith("|")] == [line for line in old if line.startswith("|")]
    part = redraw(tmp_path / "out", tmp_path / "part.md", ("ensemble", "expert-1")).read_text()
    assert "expert-0" not in part
    alone = redraw(tmp_path / "out", tmp_path / "alone.md", ("noise-average",)).read_text()
    assert "against each of the others" not in alone
    with pytest.raises(ValueError, match=r"holds no scores of 'base'; it has ensemble, expert-0.*systems=\[base\]"):
        redraw(tmp_path / "out", None, ("base",))
    with pytest.raises(ValueError, match=r"holds no scores: there is no run\.json"):
        redraw(tmp_path)


def test_what_is_missing_is_said_before_anything_is_drawn(folder: Path, tmp_path: Path) -> None:
    def refused(match: str, **changes: Any) -> None:
        with pytest.raises(ValueError, match=match):
            evaluate_pictures(settings(folder, "refused", out=str(tmp_path / "out"), **changes))
        assert not list((tmp_path / "out").rglob("*.png"))

    refused(r"FID and its kind .*references='' has none. Give references=FOLDER", references="")
    refused("no system 'expert-9' to evaluate", systems=("expert-9",))
    refused("has no column 'Topic' for the categories", category="Topic")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out": __file__}, r"out is a folder; .*test_runs\.py is no folder\. Give another name"),
        ({"report": str(Path(__file__).parent)}, r"report is a file; .*evaluation is a folder\."),
        ({"report": f"{__file__}/page.md"}, r"report is a file; .*test_runs\.py is no folder"),
        ({"report": "page"}, r"report is a file with an ending, such as page\.md"),
        ({"report": str(Path(__file__).with_suffix(".py.md"))}, r"with a folder of its name beside it; .*is no folder"),
    ],
)
def test_where_results_cannot_go_is_said_before_anything_is_loaded(changes: dict[str, str], message: str) -> None:
    places = {"out": "build/out", "report": "build/page.md", **changes}
    with pytest.raises(ValueError, match=message):
        measure(EvaluateConfig.model_validate({"ensemble": "absent", **places}))


def test_scores_of_other_prompts_are_refused(folder: Path, config: PicturesConfig) -> None:
    (folder / "other.txt").write_text("something else\n")
    changes = {"prompts": str(folder / "other.txt"), "column": "prompt", "category": ""}
    with pytest.raises(ValueError, match=r"holds the scores of another run: its (column|prompts) was"):
        evaluate_pictures(settings(folder, "whole", **changes))


# -- in processes of their own -----------------------------------------------------------------------------------------


def start(config: PicturesConfig, folder: Path, *launcher: str) -> subprocess.Popen[bytes]:
    file = folder / f"{Path(config.out).name}.yaml"
    file.write_text(dump_config(config))
    command = [sys.executable, *(launcher or ("-m",)), "diffusemble", "evaluate", "--config", str(file)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.Popen(command, env=environment)


@pytest.mark.slow
def test_a_kill_loses_at_most_the_picture_in_work(folder: Path, config: PicturesConfig) -> None:
    killed = settings(folder, "killed")
    process = start(killed, folder)
    while len(list(Path(killed.out).rglob("*.png"))) < 5:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {file: file.stat().st_mtime_ns for file in Path(killed.out).rglob("*.png")}
    assert set(pictures(killed).items()) <= set(pictures(config).items())
    evaluate_pictures(killed)
    assert all(file.stat().st_mtime_ns == then for file, then in kept.items())
    assert pictures(killed) == pictures(config)
    assert table(killed) == table(config)


@pytest.mark.slow
def test_two_processes_score_exactly_what_one_scores(folder: Path, config: PicturesConfig) -> None:
    twice = settings(folder, "twice")
    options = ("--cpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no")
    launcher = ("-m", "accelerate.commands.launch", *options, "--dynamo_backend", "no", "-m")
    assert start(twice, folder, *launcher).wait() == 0
    assert pictures(twice) == pictures(config)
    assert table(twice) == table(config)
    run = json.loads((Path(twice.out) / "run.json").read_text())
    assert run["identity"] == json.loads((Path(config.out) / "run.json").read_text())["identity"]
