"""States add up: over batches, over states, over processes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing as mp

from diffusemble.evaluation.metrics.inception_score import inception_score
from diffusemble.evaluation.metrics.states import FeatureState, MomentState
from diffusemble.evaluation.statistics import kernel_distance


def features(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(kind: str) -> MomentState | FeatureState:
    kinds = {
        "moments": MomentState,
        "kernel": lambda: FeatureState(kernel_distance),
        "inception score": lambda: FeatureState(lambda x: inception_score(x, 3).mean, needs_reference=False),
    }
    return kinds[kind]()


KINDS = ("moments", "kernel", "inception score")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def value(kind: str, state: MomentState | FeatureState) -> float:
    reference = make(kind)
    reference.update(features(9, 23, 5) * 1.4)
    return state.compute(reference)


def test_batches_and_merged_states_give_the_value_of_the_whole(kind):
    x = features(0, 31, 5)
    whole, parts, others = make(kind), make(kind), make(kind)
    whole.update(x)
    for batch in x[:20].split(7):
        parts.update(batch)
    others.update(x[20:])
    parts.merge(others)
    parts.merge(make(kind))  # an empty state changes nothing
    assert parts.count == whole.count == 31
    assert value(kind, parts) == pytest.approx(value(kind, whole), rel=1e-12)


def test_merging_leaves_the_other_state_alone():
    first, second = MomentState(), MomentState()
    second.update(features(0, 4, 3))
    before = second.moments().total.copy()
    first.merge(second)
    first.update(features(1, 4, 3))
    np.testing.assert_array_equal(second.moments().total, before)


def _work(rank: int, folder: str, sizes: tuple[int, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=len(sizes))
    part = features(0, sum(sizes), 5).split(sizes)[rank]
    found = []
    for kind in KINDS:
        state = make(kind)
        if len(part):
            state.update(part)
        state.reduce()
        found.append((state.count, value(kind, state)))
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")  # starting afresh would import torch again
@pytest.mark.parametrize("sizes", [(11, 20), (31, 0)], ids=["both have some", "one has none"])
def test_two_processes_find_what_one_finds(tmp_path: Path, sizes: tuple[int, int]):
    mp.start_processes(_work, (str(tmp_path), sizes), nprocs=2, start_method="fork")
    for rank in range(2):
        for kind, (count, found) in zip(KINDS, torch.load(tmp_path / f"{rank}.pt"), strict=True):
            alone = make(kind)
            alone.update(features(0, 31, 5))
            assert count == 31
            assert found == pytest.approx(value(kind, alone), rel=1e-12), kind


def test_reduce_does_nothing_in_a_single_process(kind):
    state = make(kind)
    state.update(features(0, 12, 5))
    before = value(kind, state)
    state.reduce()
    assert value(kind, state) == before


def test_states_survive_the_disk(tmp_path: Path):
    moments, kept = MomentState(), FeatureState(kernel_distance)
    for state in (moments, kept):
        state.update(features(0, 12, 5))
        state.save(tmp_path / "deep" / "state.safetensors")
        if state is moments:
            assert value("moments", MomentState.load(tmp_path / "deep" / "state.safetensors")) == value(
                "moments", moments
            )
    again = FeatureState(kernel_distance)
    again.read(tmp_path / "deep" / "state.safetensors")
    assert torch.equal(again.features(), kept.features())


def test_sums_are_kept_in_float64():
    state = MomentState()
    for _ in range(50):
        state.update(torch.full((4, 2), 1e4) + features(1, 4, 2) * 1e-2)
    assert state.moments().covariance.dtype == np.float64
    assert 0 < state.moments().covariance[0, 0] < 1e-3


def test_wrong_features_are_refused(kind):
    state = make(kind)
    with pytest.raises(ValueError, match=r"features \[b d\].*\(2, 3, 4\).*Pool feature maps"):
        state.update(torch.zeros(2, 3, 4))
    bad = torch.zeros(3, 5)
    bad[1, 2] = torch.nan
    with pytest.raises(ValueError, match=r"finite; those of the pictures \[1\].*float32"):
        state.update(bad)
    state.update(torch.zeros(3, 5))
    with pytest.raises(ValueError, match=r"width 5, the new ones 4.*one state for each net"):
        state.update(torch.zeros(3, 4))


def test_empty_sets_and_missing_references_are_named():
    for state in (MomentState(), FeatureState(kernel_distance)):
        full = type(state)() if isinstance(state, MomentState) else FeatureState(kernel_distance)
        full.update(features(0, 4, 3))
        with pytest.raises(ValueError, match="compares with a reference set; got none"):
            full.compute()
        with pytest.raises(ValueError, match=r"empty\. Add pictures first"):
            full.compute(state)
