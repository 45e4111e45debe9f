"""An ensemble computes the same wherever its weights are between two blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from diffusemble import EnsembleDenoiser, build_aggregator
from diffusemble.blocks.packing import PartwiseText
from diffusemble.memory.bundle import Bundle, bytes_of, weights_of
from diffusemble.memory.measure import measure_weights
from diffusemble.memory.networks import networks_of
from diffusemble.memory.place import Placement
from diffusemble.memory.staging import StagedBlocks
from memory_cases import FAMILIES, a_call, a_plan, an_ensemble, predict, watch

COMBINERS: dict[str, dict[str, Any]] = {
    "mean": {},
    "mean last": {"points": "last"},
    "mixture-blocks": {"preset": "tiny"},
    "mixture-denoisers": {"preset": "tiny"},
    "timestep-switch": {},
}


@pytest.mark.parametrize(("family", "resident"), [("sd", 1.5), ("sdxl", 1), ("flux", 0.4), ("sd3", 0)])
def test_every_family_predicts_the_same_bits(family: str, resident: float) -> None:
    ensemble = an_ensemble(family)
    call = a_call(ensemble)
    expected = predict(ensemble, call)
    plan = a_plan(ensemble, resident=resident)
    with Placement(ensemble, plan, "cpu") as placed:
        wrong = watch(ensemble, placed)
        drawn, brought = [predict(ensemble, call)], placed.conveyor.brought
        drawn.append(predict(ensemble, call))
    assert all(torch.equal(one, expected) for one in drawn)
    assert wrong == []
    assert placed.conveyor.brought - brought == plan.travels
    assert 0 < placed.residence.peak <= plan.weights


@pytest.mark.parametrize("combiner", COMBINERS)
def test_every_order_of_blocks_predicts_the_same_bits(combiner: str) -> None:
    ensemble = an_ensemble("sd", combiner.split()[0], **COMBINERS[combiner])
    call = a_call(ensemble)
    expected, plan = predict(ensemble, call), a_plan(ensemble, resident=1.5)
    assert 1.5 <= plan.resident < 2.4
    assert all(0 < sum(stays) < len(stays) for stays in plan.stays)
    with Placement(ensemble, plan, "cpu") as placed:
        wrong = watch(ensemble, placed)
        assert torch.equal(predict(ensemble, call), expected)
        assert placed.residence.peak <= plan.weights
    assert wrong == []


@pytest.mark.parametrize(("points", "copies"), [("last", 2), ("all", 1)])
def test_an_expert_in_two_places_brings_what_the_plan_says(points: str, copies: int) -> None:
    """One expert after the other, its blocks come twice in a step; in lockstep they are still there."""
    first, second = (FAMILIES["sd"](seed) for seed in range(2))
    experts = [first, second, first]
    options = {"points": points} if points == "last" else {}
    ensemble = EnsembleDenoiser(experts, build_aggregator("mean", experts, **options)).eval()
    call, plan = a_call(ensemble), a_plan(ensemble, resident=0)
    sizes = [sum(blocks) for blocks in measure_weights(networks_of(ensemble)).blocks]
    with Placement(ensemble, plan, "cpu") as placed:
        predict(ensemble, call)
        before = placed.conveyor.brought
        predict(ensemble, call)
        assert placed.conveyor.brought - before == plan.travels == copies * sizes[0] + sizes[1]


@pytest.fixture(scope="module")
def three() -> EnsembleDenoiser:
    """Experts that tests leave as they were."""
    return an_ensemble("sd")


def test_weights_that_experts_share_stay() -> None:
    ensemble = an_ensemble("sd", "mean", n=2)
    first, second = ensemble.denoisers
    second.mid_block.resnets[0].conv1.weight = first.mid_block.resnets[0].conv1.weight
    call = a_call(ensemble)
    expected = predict(ensemble, call)
    shared = id(first.mid_block.resnets[0].conv1.weight)
    with Placement(ensemble, a_plan(ensemble, resident=1), "cpu") as placed:
        assert shared in placed.staying
        assert torch.equal(predict(ensemble, call), expected)
        assert placed.residence.peak <= placed.plan.weights


@pytest.mark.parametrize("when", ["before", "while"])
def test_a_pipeline_that_packs_its_own_way_follows_the_placement(when: str) -> None:
    """SD3's pipelines get a twin of the ensemble."""
    ensemble = an_ensemble("sd3", "mean", n=2)
    twin = ensemble.reading(PartwiseText(5, (2, 2), False))
    assert twin.blocks is ensemble.blocks
    with Placement(ensemble, a_plan(ensemble, resident=0), "cpu"):
        twin = twin if when == "before" else ensemble.reading(PartwiseText(5, (2, 2), False))
        assert all(isinstance(blocks, StagedBlocks) for blocks in twin.blocks)
    assert not any(isinstance(blocks, StagedBlocks) for blocks in twin.blocks)


def test_two_buffers_are_all_that_blocks_take(three: EnsembleDenoiser) -> None:
    ensemble = three
    plan = a_plan(ensemble, resident=0)
    whole = bytes_of(weights_of([ensemble.denoisers]))
    with Placement(ensemble, plan, "cpu") as placed:
        still = placed.residence.bytes
        predict(ensemble, a_call(ensemble))
        largest = max(scene.bundle.bytes for scene in placed.bundles.values())
        assert placed.residence.peak == still + 2 * largest == plan.weights
    assert plan.weights < whole


def test_the_next_block_is_brought_before_this_one_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    ensemble = an_ensemble("sd", "mean")
    events: list[tuple[str, Any]] = []
    with Placement(ensemble, a_plan(ensemble, resident=1), "cpu") as placed:
        names = {id(scene.bundle): (key, name) for (key, name), scene in placed.bundles.items()}
        bring = placed.conveyor.lane.bring
        where = {
            flat: bundle for bundle, flat in ((s.bundle, s.bundle.home.data_ptr()) for s in placed.bundles.values())
        }

        def told(number: int, source: torch.Tensor, target: torch.Tensor) -> None:
            events.append(("bring", names[id(where[source.data_ptr()])]))
            bring(number, source, target)

        monkeypatch.setattr(placed.conveyor.lane, "bring", told)
        for blocks in ensemble.blocks:
            run = blocks.inner.run

            def runs(name: str, flow: Any, run: Any = run, key: int = id(blocks.denoiser)) -> Any:
                events.append(("run", (key, name)))
                return run(name, flow)

            monkeypatch.setattr(blocks.inner, "run", runs)
        predict(ensemble, a_call(ensemble))
    passing = [event for event in events if event[0] == "bring" or event[1] in names.values()]
    order = [what for kind, what in passing if kind == "run"]
    brought = [what for kind, what in passing if kind == "bring"]
    assert brought == [*order, order[0]]  # each once, and the first one for the next step
    for number, block in enumerate(order[1:], start=1):
        assert passing.index(("bring", block)) < passing.index(("run", order[number - 1]))


def test_one_denoiser_for_several_experts_passes_once() -> None:
    denoiser = FAMILIES["sd"](0)
    ensemble = EnsembleDenoiser([denoiser] * 3).eval()
    expected = predict(ensemble, a_call(ensemble))
    plan = a_plan(ensemble, resident=0)
    assert plan.experts == 1
    with Placement(ensemble, plan, "cpu") as placed:
        brought = count_brought(placed)
        assert torch.equal(predict(ensemble, a_call(ensemble)), expected)
    assert len(brought) == len(ensemble.points) + 1


def count_brought(placed: Placement) -> list[int]:
    """Filled with the buffer of every copy."""
    brought: list[int] = []
    bring = placed.conveyor.lane.bring

    def told(number: int, source: torch.Tensor, target: torch.Tensor) -> None:
        brought.append(number)
        bring(number, source, target)

    placed.conveyor.lane.bring = told  # type: ignore[method-assign]
    return brought


def test_another_ensemble_of_the_same_experts_shares_the_placement() -> None:
    ensemble = an_ensemble("sd")
    alone = EnsembleDenoiser([ensemble.experts[2]]).eval()
    call = a_call(alone)
    expected = predict(alone, call)
    with Placement(ensemble, a_plan(ensemble, resident=1), "cpu") as placed:
        placed.adopt(alone)
        wrong = watch(ensemble, placed)
        assert torch.equal(predict(alone, call), expected)
    assert wrong == []
    assert torch.equal(predict(alone, call), expected)


def test_nothing_may_be_attached_meanwhile() -> None:
    ensemble = an_ensemble("sd")
    with Placement(ensemble, a_plan(ensemble, resident=1), "cpu"):
        ensemble.denoisers[1].late = nn.Linear(2, 3)
        with pytest.raises(ValueError, match=r"2 weights came after it was placed, such as denoisers\.1\.late\.weight"):
            predict(ensemble, a_call(ensemble))


def test_weights_are_in_one_placement_at_a_time() -> None:
    ensemble = an_ensemble("sd", "mean", n=2)
    other, plan = EnsembleDenoiser([ensemble.experts[1]]), a_plan(ensemble, resident=0)
    with Placement(ensemble, plan, "cpu") as placed:
        before = [weight.data_ptr() for weight in weights_of([ensemble])]
        for twice in (ensemble, other):
            with pytest.raises(ValueError, match=r"Another memory plan holds .*: placement\.adopt\(ensemble\)"):
                Placement(twice, a_plan(twice, resident=0), "cpu")
        assert [weight.data_ptr() for weight in weights_of([ensemble])] == before
        assert placed.residence.bytes > 0
    with Placement(other, a_plan(other, resident=0), "cpu"):
        pass


def test_a_plan_for_others_is_refused(three: EnsembleDenoiser) -> None:
    plan = a_plan(an_ensemble("sd", n=2))
    with pytest.raises(ValueError, match=r"made for 2 different denoisers with 18 blocks; the ensemble has 3 with 27"):
        Placement(three, plan, "cpu")


@pytest.mark.parametrize(("storage", "close", "resident"), [("float8", 0.2, 0), ("int8", 0.02, 1.5)])
def test_eight_bits_come_close(storage: str, close: float, resident: float) -> None:
    ensemble = an_ensemble("sd")
    call = a_call(ensemble)
    expected = predict(ensemble, call)
    plan = a_plan(ensemble, resident=resident, storage=storage)
    assert plan.weights < a_plan(ensemble, resident=resident).weights
    with Placement(ensemble, plan, "cpu") as placed:
        found = predict(ensemble, call)
        assert placed.residence.peak <= plan.weights
    assert 0 < (found - expected).norm() / expected.norm() < close
    assert torch.equal(predict(ensemble, call), found)  # what was rounded stays rounded


def test_coded_weights_at_rest_cannot_be_used_by_mistake() -> None:
    weight = nn.Parameter(torch.randn(3, 4), requires_grad=False)
    bundle = Bundle([weight], "int8")
    assert not weight.isnan().any()  # who is interrupted here has lost nothing
    bundle.rest()
    assert weight.shape == (3, 4)
    assert weight.isnan().all()
    bundle.unpack(torch.device("cpu"))
    assert not weight.isnan().any()
