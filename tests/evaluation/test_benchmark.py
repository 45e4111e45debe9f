"""The whole command on a tiny ensemble: interrupted, resumed, and its page."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from diffusemble.evaluation.benchmark import ensemble_folder, evaluate
from diffusemble.evaluation.config import EvaluateConfig
from diffusemble.evaluation.results import Results
from diffusemble.evaluation.runs import redraw
from diffusemble.evaluation.store import stored
from diffusemble.evaluation.stored import Layout
from diffusemble.settings import load_config
from tests.evaluation.tiny_zoo import save_tiny_ensemble, tiny_config, write_pictures

SYSTEMS = ("expert-0", "expert-1", "ensemble")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    write_pictures(folder / "pictures")
    save_tiny_ensemble(folder)
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> Results:
    return evaluate(tiny_config(folder, systems=SYSTEMS))


def test_an_interrupted_and_resumed_run_gives_the_same_results(folder, results):
    class KilledError(Exception):
        pass

    def kill(share: float, what: str) -> None:
        if what == "drawing: expert *expert-1*":
            raise KilledError

    config = tiny_config(folder, systems=SYSTEMS, out=str(folder / "again"), report=str(folder / "again.md"))
    with pytest.raises(KilledError):
        evaluate(config, kill)
    kept = {file: file.stat().st_mtime_ns for file in (folder / "again").rglob("*.npz")}
    assert any("images" in str(file) for file in kept)
    assert evaluate(config) == results
    assert all(file.stat().st_mtime_ns == then for file, then in kept.items())
    page = (folder / "again.md").read_text()
    assert page.replace("again/", "results/") == (folder / "results.md").read_text()


def test_everything_is_kept_picture_by_picture(folder, results):
    with np.load(folder / "out/losses/pair/ensemble-00000.npz") as piece:
        assert piece["losses"].shape == (2, 2)
    run = json.loads((folder / "out/run.json").read_text())
    assert run["identity"]["seed"] == 0
    assert "torch" in run["notes"]["versions"]


def test_tables_hold_what_was_measured(folder, results):
    pairs = {row.name: row for row in results.losses["pair"]}
    assert results.best == min(("expert-0", "expert-1"), key=lambda name: pairs[name].mean)
    assert pairs[results.best].gap is None
    files = sorted((folder / "out/losses/pair").glob("ensemble-*.npz"))
    stored = np.concatenate([np.load(file)["losses"] for file in files])
    assert pairs["ensemble"].mean == pytest.approx(stored.mean())
    assert pairs["ensemble"].gap.value == pytest.approx(pairs["ensemble"].mean - pairs[results.best].mean)
    against = results.versus["pair"]
    assert set(against) == {"expert-0", "expert-1"}
    assert against[results.best] == pairs["ensemble"].gap
    mine = {row.name: row.by_kind for row in results.losses["pair"]}
    assert mine["oracle"] == {"expert-0": mine["expert-0"]["expert-0"], "expert-1": mine["expert-1"]["expert-1"]}
    for weights in results.weights.values():
        assert sum(weights) == pytest.approx(1, abs=1e-5)


def test_the_page_has_tables_and_small_pictures(folder, results):
    page = (folder / "results.md").read_text()
    for part in ("Held-out denoising loss", "Whom the ensemble listens to", "Prompt match (zoo)", "AFA ensemble"):
        assert part in page
    assert 0 < (folder / "results/loss.png").stat().st_size < 150_000
    assert (folder / "results/samples.webp").is_file()


def test_systems_can_be_measured_one_by_one(folder, results):
    config = tiny_config(folder, systems=("expert-1-inside",), report=str(folder / "part.md"))
    part = evaluate(config)
    whole = {row.name: row for row in results.losses["pair"]}
    assert [row.name for row in part.losses["pair"]] == ["expert-1-inside"]
    assert part.losses["pair"][0].mean == pytest.approx(whole["expert-1"].mean, rel=1e-4)
    assert "not among the systems" in (folder / "part.md").read_text()


def test_report_redraws_the_page_and_a_part_of_it(folder, results):
    config = tiny_config(folder, systems=SYSTEMS, out=str(folder / "kept"), report=str(folder / "kept.md"))
    evaluate(config)
    page = (folder / "kept.md").read_text()
    assert redraw(folder / "kept").read_text() == page
    part = redraw(folder / "kept", folder / "two.md", ("expert-1",)).read_text()
    assert "AFA ensemble" not in part.replace("The ensemble", "")
    columns = parquet.read_table(folder / "kept/scores.parquet").to_pydict()
    assert set(columns["system"]) == set(SYSTEMS)
    assert set(columns["score"]) == {"loss", "prompt match", "right thing", "prompt-match"}
    assert set(columns["time"]) == {100, 700, None}


def test_captions_come_again_with_new_noise_and_count_as_one_concept(folder, results):
    jobs = Layout.read(stored(folder / "out")).jobs
    assert len(jobs) == 4
    assert jobs[3] == jobs[0]
    images = np.concatenate([np.load(folder / f"out/images/ensemble-{at:05d}.npz")["images"] for at in (0, 2)])
    assert not np.array_equal(images[0], images[3])
    drawn = {row.name: row for row in results.drawn}
    assert drawn["ensemble"].scores["prompt match"].gap is not None


def test_scores_of_other_settings_are_refused(folder, results):
    with pytest.raises(ValueError, match="another run: its steps was 2, now 3"):
        evaluate(tiny_config(folder, systems=SYSTEMS, steps=3))


def test_what_is_missing_is_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no trained ensemble for the group 'flowers'"):
        ensemble_folder("zoo:flowers")
    with pytest.raises(ValueError, match="is not a saved ensemble"):
        evaluate(tiny_config(folder, ensemble=str(tmp_path)))
    with pytest.raises(FileNotFoundError, match="needs captioned pictures"):
        evaluate(tiny_config(folder, data=str(tmp_path)))
    shutil.copytree(folder / "pictures", tmp_path / "pictures")
    lines = (tmp_path / "pictures/metadata.jsonl").read_text().replace('"pair"', '"train"')
    (tmp_path / "pictures/metadata.jsonl").write_text(lines)
    with pytest.raises(ValueError, match="no pictures of the split 'pair'"):
        evaluate(tiny_config(folder, data=str(tmp_path / "pictures"), out=str(tmp_path / "out")))


def test_an_unknown_protocol_is_refused_and_the_schema_needs_no_torch():
    with pytest.raises(ValueError, match="protocol must be 'zoo'; got 'coco'"):
        load_config(EvaluateConfig, protocol="coco")
    code = "import sys, diffusemble.evaluation.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
