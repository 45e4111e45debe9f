"""Scores are measured once, whatever study asks for them, and a killed study goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from diffusemble.ensembles.output_level import OutputEnsembleDenoiser
from diffusemble.evaluation.heldout import losses
from diffusemble.evaluation.statistics import paired_bootstrap
from diffusemble.evaluation.studies.compare import best_expert, comparison, loss_gaps, said, tally
from diffusemble.evaluation.studies.digest import digest_of
from diffusemble.evaluation.studies.experts import at_steps
from diffusemble.evaluation.studies.findings import joined, scaled, verdict
from diffusemble.evaluation.studies.lab import Lab
from diffusemble.evaluation.systems import System, build_systems, plain_pipeline, select
from diffusemble.experts.load import load_experts
from tests.evaluation.studies.quick import quick


@pytest.fixture(scope="module")
def lab(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(quick("steps", tiny, tmp_path_factory.mktemp("lab")))


@pytest.fixture(scope="module")
def systems(lab: Lab) -> tuple[System, ...]:
    return build_systems(lab.ensemble)


def test_losses_are_those_of_the_benchmark(lab: Lab, systems: tuple[System, ...]) -> None:
    system, config = systems[0], lab.config
    expected = losses(system.predict, lab.held(system), system.diffusion, config.times, config.draws, config.seed)
    assert np.allclose(lab.losses(system), expected.numpy(), atol=1e-6)


def test_equal_ways_to_draw_are_measured_once_and_others_are_not_confused(
    lab: Lab, systems: tuple[System, ...]
) -> None:
    def kept() -> set[Path]:
        return set(Path(lab.config.out).rglob("*.npz"))

    system = systems[0]
    first = lab.measure([at_steps(system, 1)], loss=False)
    before = kept()
    twin = replace(system, pipeline=plain_pipeline(lab.ensemble.experts[0]))
    assert np.array_equal(
        lab.measure([at_steps(twin, 1)], loss=False)[f"{system.name}-1"].images, first[f"{system.name}-1"].images
    )
    assert kept() == before
    other = replace(system, pipeline=plain_pipeline(lab.ensemble.experts[1]))
    assert not np.array_equal(
        lab.measure([at_steps(other, 1)], loss=False)[f"{system.name}-1"].images, first[f"{system.name}-1"].images
    )
    assert kept() > before


def test_ensembles_at_output_level_are_not_studied(tiny: Path, tmp_path: Path) -> None:
    experts = load_experts([tiny / "expert-0", tiny / "expert-1"])
    OutputEnsembleDenoiser(experts, "mean").save_pretrained(tmp_path / "output")
    with pytest.raises(
        ValueError, match=r"those of .*output meet at the output alone. Measure it with `diffusemble ev"
    ):
        Lab(quick("steps", tiny, tmp_path, ensemble=str(tmp_path / "output"))).ensemble


def test_a_killed_measurement_goes_on(tiny: Path, tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    def kill(share: float, what: str) -> None:
        if what == "expert *expert-1*":
            raise KilledError

    config = quick("steps", tiny, tmp_path)
    doomed = Lab(config, kill)
    with pytest.raises(KilledError):
        doomed.measure(build_systems(doomed.ensemble)[:2], draw=False)
    kept = {file: file.stat().st_mtime_ns for file in Path(config.out).rglob("*.npz")}
    assert kept
    again = Lab(config)
    assert set(again.measure(build_systems(again.ensemble)[:2], draw=False)) == {"expert-0", "expert-1"}
    assert all(file.stat().st_mtime_ns == then for file, then in kept.items())


def test_the_digest_follows_weights_and_options(lab: Lab, systems: tuple[System, ...]) -> None:
    digests = {system.name: digest_of(system.pipeline.unet) for system in systems}
    one, other = (digests[name] for name in ("noise-average", "block-average"))
    assert one != other  # they differ in an option alone
    assert digests["expert-0"] != digests["expert-1"]
    assert digest_of(lab.load(lab.config.ensemble).pipeline()) == digest_of(lab.ensemble.pipeline())


def test_differences_are_paired_over_concepts(lab: Lab, systems: tuple[System, ...]) -> None:
    measured = lab.measure(select(systems, ("expert-0", "expert-1", "ensemble")), draw=False)
    best = best_expert(measured)
    assert best.loss == min(measured["expert-0"].loss, measured["expert-1"].loss)
    gaps = loss_gaps(measured, best, lab)
    assert set(gaps) == set(measured) - {best.name}
    difference = 1000 * (measured["ensemble"].losses - best.losses).mean(axis=1)
    expected = paired_bootstrap(difference, [row.concept for row in lab.rows], lab.config.bootstrap, lab.config.seed)
    assert gaps["ensemble"].low == pytest.approx(expected.low)
    shown = f"{measured['ensemble'].loss - best.loss:+.2f}".replace("-", "−")
    assert f"({shown} [" in said(measured["ensemble"], best, lab)
    table = comparison(measured, best, lab)
    assert [row[0] for row in table.rows] == [one.title for one in measured.values()]
    assert next(row for row in table.rows if row[0] == best.title)[2:] == [None, None]


def test_without_an_expert_there_is_no_best_one(lab: Lab, systems: tuple[System, ...]) -> None:
    with pytest.raises(ValueError, match=r"There is no expert among ensemble. Measure the experts'"):
        best_expert(lab.measure(select(systems, ("ensemble",)), draw=False))


def test_metrics_are_where_the_experts_are(tiny: Path, tmp_path: Path) -> None:
    scorer = Lab(quick("steps", tiny, tmp_path, device="meta")).scorer("prompt-match")
    assert {net.mean.device.type for net in scorer.nets.nets} == {"meta"}


def test_what_cannot_be_measured_is_named(lab: Lab, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'kid-mobilenet' compares sets. Leave it out of metrics"):
        lab.scorer("kid-mobilenet")
    with pytest.raises(ValueError, match="Unknown metric 'beauty'"):
        lab.scorer("beauty")
    with pytest.raises(ValueError, match="no pictures of the split 'flowers'; it has"):
        Lab(quick("steps", tiny, tmp_path, split="flowers"))
    with pytest.raises(FileNotFoundError, match="needs captioned pictures"):
        Lab(quick("steps", tiny, tmp_path, data=str(tmp_path)))


def test_words_for_differences() -> None:
    below = paired_bootstrap([-2.0, -1.0, -1.5], samples=50)
    unclear = paired_bootstrap([-2.0, 2.0, 0.5, -0.5], samples=50)
    assert (verdict(below, lower_is_better=True), verdict(below, lower_is_better=False)) == ("better", "worse")
    assert verdict(unclear, lower_is_better=True) == "not clearly different"
    assert tally({"a": below, "b": unclear}, True) == "1 clearly better, 0 clearly worse, 1 not clearly different"
    assert scaled(below, 1000).low == pytest.approx(1000 * below.low)
    assert [joined(names) for names in ([], ["a"], ["a", "b", "c"])] == ["none", "a", "a, b and c"]
