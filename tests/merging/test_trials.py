from __future__ import annotations

import json
import math

import pytest

from diffusemble.merging.coordinates import Axis, Step
from diffusemble.merging.trials import TrialLog, mean

SHARES = {"BASE": (0.1, 0.9), "M00": (1 / 3, 2 / 3)}
OTHER = {"BASE": (0.1, 0.9), "M00": (0.3, 0.7)}
STEP = Step(1, Axis(("M00",), 1), 2 / 3)


def test_what_was_tried_is_found_again_after_a_restart(tmp_path):
    log = TrialLog(tmp_path / "log.jsonl", {"seed": 1})
    log.add(SHARES, STEP, [0.1 + 0.2, 1 / 3])
    again = TrialLog(tmp_path / "log.jsonl", {"seed": 1})
    assert again.find(SHARES) == (0.1 + 0.2, 1 / 3)
    assert again.find(OTHER) is None
    assert len(again) == 1


def test_a_line_says_what_was_tried(tmp_path):
    TrialLog(tmp_path / "log.jsonl", {}).add(SHARES, STEP, [1.0, 2.0])
    line = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[1])
    assert line == {
        "trial": 1,
        "pass": 1,
        "slots": ["M00"],
        "expert": 1,
        "value": 2 / 3,
        "score": 1.5,
        "scores": [1.0, 2.0],
        "shares": {"BASE": [0.1, 0.9], "M00": [1 / 3, 2 / 3]},
    }


def test_a_line_that_a_kill_cut_off_is_written_again(tmp_path):
    file = tmp_path / "log.jsonl"
    log = TrialLog(file, {})
    log.add(SHARES, STEP, [1.0])
    log.add(OTHER, STEP, [2.0])
    whole = file.read_bytes()
    file.write_bytes(whole[:-7])
    again = TrialLog(file, {})
    assert again.find(OTHER) is None
    again.add(OTHER, STEP, [2.0])
    assert file.read_bytes() == whole


def test_a_log_cut_off_in_its_first_line_starts_again(tmp_path):
    file = tmp_path / "log.jsonl"
    file.write_text('{"format": 1, "iden')
    assert len(TrialLog(file, {"seed": 1})) == 0
    assert json.loads(file.read_text())["identity"] == {"seed": 1}


def test_pictures_without_a_score_make_a_trial_the_worst(tmp_path):
    assert mean([1.0, math.nan]) == -math.inf
    file = tmp_path / "log.jsonl"
    TrialLog(file, {}).add(SHARES, STEP, [1.0, math.nan])
    found = TrialLog(file, {}).find(SHARES)
    assert found is not None
    assert mean(found) == -math.inf
    assert "NaN" not in file.read_text()


def test_the_log_of_another_search_is_refused(tmp_path):
    TrialLog(tmp_path / "log.jsonl", {"seed": 1})
    with pytest.raises(ValueError, match=r"log of another search: its seed was 1, now 2\. Give another folder as out"):
        TrialLog(tmp_path / "log.jsonl", {"seed": 2})


def test_the_same_experts_in_another_order_are_another_search(tmp_path):
    one, other = {"a": {"x": "1"}, "b": {"x": "2"}}, {"b": {"x": "2"}, "a": {"x": "1"}}  # shares are kept by place
    TrialLog(tmp_path / "log.jsonl", {"experts": one})
    with pytest.raises(ValueError, match=r"its set of experts was a, b, now b, a\."):
        TrialLog(tmp_path / "log.jsonl", {"experts": other})


@pytest.mark.parametrize("text", ["[1]\n", '{"format": 0, "identity": {}}\n', "no json\n"])
def test_what_is_no_log_is_refused(tmp_path, text):
    (tmp_path / "log.jsonl").write_text(text)
    with pytest.raises(ValueError, match="is no log of a search"):
        TrialLog(tmp_path / "log.jsonl", {})
