from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from diffusemble.experts.expert import Expert
from diffusemble.experts.load import load_experts
from diffusemble.merging.blockwise import slots
from diffusemble.merging.config import MergeConfig
from diffusemble.merging.merge import merge
from diffusemble.merging.merged_expert import MergedExpert
from diffusemble.merging.objective import DrawnScores
from diffusemble.merging.search import search
from diffusemble.merging.search_config import SearchConfig
from diffusemble.samplers import build_scheduler
from diffusemble.settings import load_config
from tests.merging import scorers
from tests.tiny import as_expert, tiny_pipeline, tiny_text_encoder, tiny_unet

ROOT = Path(__file__).parents[2]
# Experts that differ in two slots only, so that a search takes seconds.
DIFFERENT = ("mid_block", "up_blocks.3.resnets.2")


def nearly_equal(seed: int):
    first, other = tiny_unet(0), tiny_unet(seed)
    weights = other.state_dict()
    first.load_state_dict({k: weights[k] if k.startswith(DIFFERENT) else v for k, v in first.state_dict().items()})
    return tiny_pipeline(0, unet=first, text_encoder=tiny_text_encoder(0))


@pytest.fixture(scope="module")
def experts(tmp_path_factory) -> tuple[Expert, ...]:
    where = tmp_path_factory.mktemp("experts")
    for seed in range(3):
        nearly_equal(seed).save_pretrained(where / f"expert{seed}")
    return load_experts([where / f"expert{seed}" for seed in range(3)])


def settings(out, **changes) -> dict:
    few = {"prompts": ["a fox", "an owl"], "seeds": [1], "steps": 1, "guidance": 1.0, "device": "cpu"}
    return {
        "experts": ["one", "two"],
        "scorer": "tests.merging.scorers:redness",
        "out": str(out),
        "rounds": 1,
        **few,
        **changes,
    }


def run(loaded, count: int = 2, **keys):
    return search(SearchConfig(**keys), experts=loaded[:count])


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "trials.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("count", [2, 3])
def test_a_search_finds_weights_that_score_higher_than_the_start(experts, tmp_path, count):
    found = run(experts, count, **settings(tmp_path))
    scores = [trial.score for trial in found.trials]
    assert found.score == max(scores) > scores[0]
    assert all(sum(own) == pytest.approx(1) for own in found.shares.values())
    assert set(found.shares) == set(slots("sd1"))
    pipeline = MergedExpert(experts[:count], found.weights).pipeline()
    pipeline.scheduler = build_scheduler("ddim", pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    drawn = DrawnScores(found.config, scorers.redness)(pipeline)
    assert drawn.double().mean().item() == pytest.approx(found.score, abs=1e-6)


def test_only_slots_in_which_the_experts_differ_are_searched(experts, tmp_path):
    found = run(experts, **settings(tmp_path))
    searched = [trial.step.axis.slots for trial in found.trials if trial.step.axis is not None]
    assert list(dict.fromkeys(searched)) == [("M00",), ("OUT11",)]
    assert {own for slot, own in found.shares.items() if slot not in ("M00", "OUT11")} == {(0.5, 0.5)}


def test_a_finished_search_draws_nothing_again(experts, tmp_path, monkeypatch):
    config = SearchConfig(**settings(tmp_path, passes=2))
    first = search(config, experts=experts[:2])
    written = (tmp_path / "trials.jsonl").read_bytes()
    monkeypatch.setattr(scorers, "redness", lambda images, prompts: pytest.fail("drew again"))
    again = search(config, experts=experts[:2])
    assert again == first
    assert (tmp_path / "trials.jsonl").read_bytes() == written


def test_every_set_of_shares_is_drawn_once(experts, tmp_path):
    found = run(experts, **settings(tmp_path, passes=2))
    tried = [json.dumps(line["shares"]) for line in lines(tmp_path)[1:]]
    assert len(found.trials) == len(tried) == len(set(tried))


def test_an_interrupted_search_goes_on_bit_for_bit(experts, tmp_path, monkeypatch):
    whole, broken = (SearchConfig(**settings(tmp_path / name)) for name in ("whole", "broken"))
    want = search(whole, experts=experts[:2])
    redness, calls = scorers.redness, iter(range(3))

    def stops(images, prompts):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return redness(images, prompts)

    monkeypatch.setattr(scorers, "redness", stops)
    with pytest.raises(KeyboardInterrupt):
        search(broken, experts=experts[:2])
    monkeypatch.setattr(scorers, "redness", redness)
    assert 1 < len(lines(tmp_path / "broken")) < len(lines(tmp_path / "whole"))
    assert search(broken, experts=experts[:2]).shares == want.shares
    assert lines(tmp_path / "broken")[1:] == lines(tmp_path / "whole")[1:]


@pytest.mark.slow
def test_a_killed_search_goes_on_bit_for_bit(experts, tmp_path):
    changes = {"scorer": "tests.merging.scorers:slow_redness", "experts": [one.source for one in experts[:2]]}
    changes |= {"rounds": 3}
    run(experts, **settings(tmp_path / "whole", **changes))
    file = tmp_path / "search.yaml"
    file.write_text(yaml.safe_dump(settings(tmp_path / "killed", **changes)))
    command = [sys.executable, "-m", "diffusemble", "search", "--config", str(file)]
    slow = {**os.environ, "PYTHONPATH": str(ROOT), "SCORER_SECONDS": "1"}
    with subprocess.Popen(command, env=slow, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        log = tmp_path / "killed" / "trials.jsonl"
        while not (log.exists() and len(log.read_text().splitlines()) > 3):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    before = len(lines(tmp_path / "killed"))
    subprocess.run(command, env={**slow, "SCORER_SECONDS": "0"}, cwd=ROOT, check=True)
    after = lines(tmp_path / "killed")
    assert 3 < before < len(after)
    assert after[1:] == lines(tmp_path / "whole")[1:]
    assert (tmp_path / "killed" / "recipe.yaml").is_file()


def test_no_preference_keeps_the_start(experts, tmp_path):
    changes = {"scorer": "tests.merging.scorers:constant", "start": "GRAD_V", "passes": 3}
    found = run(experts, **settings(tmp_path, **changes))
    assert found.weights[1]["IN00"] == 1
    assert found.weights[1]["M00"] == 0
    assert found.weights[0]["IN06"] == found.weights[1]["IN06"] == 0.5
    assert len(found.trials) == 1 + 2 * 2  # both ends and the middle of each slot, one of which is the start


def test_what_comes_out_is_a_recipe_and_a_picture(experts, tmp_path):
    found = run(experts, **settings(tmp_path, merged="models/best"))
    recipe, picture = found.save()
    read = yaml.safe_load(recipe.read_text())
    sources = [expert.source for expert in experts[:2]]
    assert (read["experts"], read["method"], read["out"]) == (sources, "weighted", "models/best")
    for own, written in zip(found.weights, read["blocks"], strict=True):
        assert written == pytest.approx(own, abs=1e-6)
        assert tuple(written) == slots("sd1")
    with Image.open(picture) as image:
        assert min(image.size) > 300


def test_merging_by_the_recipe_writes_the_model_that_the_search_scored(experts, tmp_path):
    found = run(experts, **settings(tmp_path, merged=str(tmp_path / "model")))
    recipe, _ = found.save()
    merge(load_config(MergeConfig, recipe))
    (written,) = load_experts([tmp_path / "model"])
    scored = MergedExpert(experts[:2], found.weights).expert.denoiser.state_dict()
    for key, tensor in written.denoiser.state_dict().items():
        torch.testing.assert_close(tensor, scored[key])


def test_the_folder_of_another_search_is_refused(experts, tmp_path):
    run(experts, **settings(tmp_path))
    with pytest.raises(ValueError, match="log of another search: its seeds was"):
        run(experts, **settings(tmp_path, seeds=[7]))


def test_where_a_search_cannot_write_is_said_before_experts_are_loaded(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"out is a folder; .*file is no folder"):
        search(SearchConfig(experts="absent", prompts="x", out=str(tmp_path / "file")))


def test_held_out_loss_needs_no_pictures_drawn(experts, tmp_path):
    from tests.evaluation.tiny_zoo import write_pictures

    data = write_pictures(tmp_path / "data")
    changes = {"scorer": "held-out-loss", "held_out": {"data": str(data), "count": 3, "times": [300, 700]}}
    found = run(experts, **settings(tmp_path / "out", **changes))
    assert found.score > found.trials[0].score
    assert all(score < 0 for trial in found.trials for score in trial.scores)
    assert len(found.trials[0].scores) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scorer": "tests.merging.scorers:missing"}, "'tests.merging.scorers:missing' cannot be imported"),
        ({"scorer": "no_such_module:score"}, "put the module's folder on PYTHONPATH"),
        ({"scorer": "tests.merging.scorers:NUMBER"}, "is float, not a callable"),
        ({"scorer": "tests.merging.scorers:wrong_shape"}, r"gave the shape \(\) for 2 pictures. Return a tensor \[b\]"),
        ({"start": ["FLAT_50"] * 3}, "got 3 for 2 experts"),
        ({"start": "GRAD_Q"}, "no preset 'GRAD_Q'"),
    ],
)
def test_what_cannot_be_searched_is_explained(experts, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run(experts, **settings(tmp_path, **changes))


def test_one_expert_is_nothing_to_merge(tmp_path):
    config = SearchConfig(**settings(tmp_path))
    with pytest.raises(ValueError, match="merges two experts or more; got 1"):
        search(config, experts=[as_expert(tiny_pipeline())])


def test_copies_of_one_expert_leave_nothing_to_search(experts, tmp_path):
    copies = [experts[0], replace(experts[0], name="copy")]
    with pytest.raises(ValueError, match="all tensors of expert0, copy are equal"):
        search(SearchConfig(**settings(tmp_path)), experts=copies)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scorer": "imagereword"}, r"no scorer 'imagereword' \(did you mean 'imagereward'\?\)"),
        ({"prompts": []}, "there is no prompt; give several prompts"),
        ({"scorer": "held-out-loss"}, "'held-out-loss' needs pictures; give held_out.data"),
        ({"scheduler": "ddpm"}, "no scheduler 'ddpm'"),
        ({"passes": 4}, "passes must be less than or equal to 3; got 4"),
        ({"promts": ["a"]}, r"no key 'promts' .*did you mean 'prompts'"),
    ],
)
def test_wrong_settings_are_explained(changes, message):
    with pytest.raises(ValueError, match=message):
        load_config(SearchConfig, **settings("out", **changes))
