"""Variants are trained alike, once, and where the user asks for it, not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffusemble.evaluation.studies.ablations import VARIANTS
from diffusemble.evaluation.studies.granularity import variants_of
from diffusemble.evaluation.studies.lab import Lab
from diffusemble.evaluation.studies.trained import Variant, chosen, settings_of, train_variants
from tests.evaluation.studies.quick import quick


def test_variants_differ_in_one_thing_and_share_the_rest(tiny: Path, tmp_path: Path) -> None:
    lab = Lab(quick("ablations", tiny, tmp_path, training={"rate": 0.5, "data": {"root": str(tiny / "pictures")}}))
    runs = {name: settings_of(variant, lab.config, lab.ensemble.experts) for name, variant in VARIANTS.items()}
    assert all((run.rate, run.steps, run.batch) == (0.5, 1, 2) for run in runs.values())
    assert all(run.aggregator.options["preset"] == "tiny" for run in runs.values())
    assert runs["no-text"].aggregator.options["text"] is False
    assert len({run.output for run in runs.values()}) == len(runs)
    same = {run.model_dump_json(exclude={"output", "aggregator"}) for run in runs.values()}
    assert len(same) == 1


def test_points_are_chosen_for_the_denoiser() -> None:
    assert variants_of(25)["few"].changes == {"aggregator.options.points": [6, 12, 18, 24]}
    assert variants_of(3)["few"].changes == {"aggregator.options.points": [0, 1, 2]}


def test_what_is_trained_is_not_trained_again(tiny: Path, tmp_path: Path) -> None:
    told: list[str] = []
    lab = Lab(quick("ablations", tiny, tmp_path, variants="no-time"), lambda share, what: told.append(what))
    first = train_variants(VARIANTS, lab)
    assert list(first) == ["no-time"]
    assert first["no-time"].aggregator.options.time is False  # type: ignore[attr-defined]
    assert "training no-time: steps 1" in told
    told.clear()
    again = train_variants(VARIANTS, lab)
    assert not told
    for mine, other in zip(first["no-time"].parameters(), again["no-time"].parameters(), strict=True):
        assert mine.equal(other)


def test_folders_take_the_place_of_trainings(tiny: Path, tmp_path: Path) -> None:
    lab = Lab(quick("ablations", tiny, tmp_path, variants="full", folders={"full": str(tiny / "ensemble")}))
    assert train_variants(VARIANTS, lab)["full"].aggregator.options.width == 64  # type: ignore[attr-defined]
    assert not (tmp_path / "scores/trained").exists()


def test_the_variant_that_others_are_compared_with_is_always_there(tiny: Path, tmp_path: Path) -> None:
    config = quick("ablations", tiny, tmp_path, variants="no-text")
    assert list(chosen(VARIANTS, config, "full")) == ["full", "no-text"]
    assert list(chosen(VARIANTS, quick("ablations", tiny, tmp_path), "full")) == list(VARIANTS)


def test_unknown_variants_and_recipes_are_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"This study has no variant 'no-luck'. Choose among: full, last"):
        chosen(VARIANTS, quick("ablations", tiny, tmp_path, variants="no-luck"))
    with pytest.raises(ValueError, match="This study has no variant 'mine'"):
        chosen(VARIANTS, quick("ablations", tiny, tmp_path, folders={"mine": "somewhere"}))
    lab = Lab(quick("ablations", tiny, tmp_path, recipe=str(tmp_path / "none.yaml")))
    with pytest.raises(ValueError, match="There is no file"):
        settings_of(Variant("SABW"), lab.config, lab.ensemble.experts)
    lab = Lab(quick("ablations", tiny, tmp_path, training={"stepz": 3}))
    with pytest.raises(ValueError, match="there is no key 'stepz'"):
        settings_of(Variant("SABW"), lab.config, lab.ensemble.experts)
