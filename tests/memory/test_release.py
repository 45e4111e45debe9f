"""Where weights are during a placement and after it."""

from __future__ import annotations

import weakref

import pytest
import torch

from diffusemble import EnsembleDenoiser
from diffusemble.memory.bundle import Bundle, bytes_of, weights_of
from diffusemble.memory.place import Placement
from memory_cases import a_call, a_plan, an_ensemble, predict


@pytest.fixture(scope="module")
def three() -> EnsembleDenoiser:
    """Experts that tests leave as they were."""
    return an_ensemble("sd")


def test_weights_are_where_they_were_after_a_placement(three: EnsembleDenoiser) -> None:
    ensemble = three
    before = {name: weight.clone() for name, weight in ensemble.state_dict().items()}
    with Placement(ensemble, a_plan(ensemble, resident=1), "cpu"):
        predict(ensemble, a_call(ensemble))
    after = ensemble.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    storages = {weight.untyped_storage().data_ptr() for weight in weights_of([ensemble])}
    assert len(storages) == len(weights_of([ensemble]))  # every weight has its own memory again
    assert type(ensemble.blocks[0]).__name__ == "UNetBlocks"


def test_what_stays_lies_in_one_stretch_for_each_denoiser() -> None:
    """A limit counts what an allocator reserves, and many small pieces reserve more than they take."""
    ensemble = an_ensemble("sd", "mean", n=2)
    call, plan = a_call(ensemble), a_plan(ensemble, resident=1.5)
    expected = predict(ensemble, call)
    strides = [weight.stride() for weight in weights_of([ensemble])]
    with Placement(ensemble, plan, "cpu:0") as placed:  # another device, as far as its name goes
        assert torch.equal(predict(ensemble, call), expected)
        memories = {weight.untyped_storage().data_ptr() for weight in placed.staying.values()}
        assert len(memories) == 3  # the first weight, with which the pipeline finds its device, is alone
        sizes = [weight.untyped_storage().nbytes() for weight in placed.staying.values()]
        assert max(sizes) <= bytes_of(placed.staying.values()) + 256 * len(sizes)
        assert [weight.stride() for weight in weights_of([ensemble])] == strides
    assert torch.equal(predict(ensemble, call), expected)


def test_a_released_block_is_in_memory_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ensemble = an_ensemble("sd", "mean", n=2)
    with Placement(ensemble, a_plan(ensemble, resident=0), "cpu") as placed:
        homes = [weakref.ref(scene.bundle.home) for scene in placed.bundles.values()]
        left = list[int]()

        def unpack(bundle: Bundle, device: torch.device) -> None:
            left.append(sum(home() is not None for home in homes))
            unpacking(bundle, device)

        unpacking = Bundle.unpack
        monkeypatch.setattr(Bundle, "unpack", unpack)
        placed.release()
    assert left == list(range(len(homes), 0, -1))


def test_nothing_is_on_the_device_after_a_placement() -> None:
    ensemble = an_ensemble("sd", "mean", n=2)
    for choice in ({"resident": 1}, {"resident": 1, "storage": "int8"}):
        with Placement(ensemble, a_plan(ensemble, **choice), "cpu") as placed:
            predict(ensemble, a_call(ensemble))
        assert placed.residence.bytes == 0


def test_weights_placed_in_inference_mode_can_give_gradients_later() -> None:
    ensemble = an_ensemble("sd", n=2)
    call = a_call(ensemble)
    with torch.inference_mode(), Placement(ensemble, a_plan(ensemble, resident=1), "cpu"):
        predict(ensemble, call)
    assert not any(weight.is_inference() for weight in weights_of([ensemble]))
    ensemble(**call).sample.square().mean().backward()


def test_a_failing_block_leaves_everything_usable(three: EnsembleDenoiser) -> None:
    ensemble = three
    call = a_call(ensemble)
    expected = predict(ensemble, call)
    with Placement(ensemble, a_plan(ensemble, resident=0), "cpu"):
        with pytest.raises(RuntimeError):
            predict(ensemble, {**call, "encoder_hidden_states": torch.randn(2, 15, 5)})
        assert torch.equal(predict(ensemble, call), expected)
    assert torch.equal(predict(ensemble, call), expected)
