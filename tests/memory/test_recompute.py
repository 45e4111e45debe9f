"""Blocks that run again give the gradients of blocks that keep everything, but for the order of sums."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from diffusemble import EnsembleDenoiser
from diffusemble.memory.place import Placement
from diffusemble.memory.recompute import recompute_blocks
from memory_cases import a_call, a_plan, an_ensemble


def gradients(ensemble: EnsembleDenoiser, call: Mapping[str, Any]) -> list[Tensor]:
    """Of a loss, for every weight of the aggregator."""
    ensemble.zero_grad()
    ensemble(**call).sample.square().mean().backward()
    return [weight.grad.clone() for weight in ensemble.aggregator.parameters() if weight.grad is not None]


@pytest.mark.parametrize(("family", "resident"), [("sd", None), ("sd", 0), ("flux", 0.6)])
def test_gradients_are_the_same(family: str, resident: float | None) -> None:
    ensemble = an_ensemble(family, n=2)
    call = a_call(ensemble)
    expected = gradients(ensemble, call)
    assert any(gradient.abs().sum() > 0 for gradient in expected)
    if resident is None:
        recompute_blocks(ensemble)
        found = gradients(ensemble, call)
    else:
        with Placement(ensemble, a_plan(ensemble, resident=resident), "cpu"):
            recompute_blocks(ensemble)
            found = gradients(ensemble, call)
    assert close(found, expected, 1e-4)


def close(found: list[Tensor], expected: list[Tensor], error: float) -> bool:
    """Whether gradients differ by no more than the order of a sum makes: a block's are added up by themselves first."""
    one, other = (torch.cat([gradient.flatten() for gradient in side]) for side in (found, expected))
    return bool((one - other).norm() <= error * other.norm())


@pytest.mark.parametrize("family", ["flux", "sd3"])
def test_weights_that_learn_inside_a_block_that_passes_are_refused_unless_it_runs_again(family: str) -> None:
    """Also in the last block, into which no gradient-wanting feature comes: what it saves is gone by then."""
    ensemble = an_ensemble(family, "mean", n=2)
    call, (*_, last) = a_call(ensemble), ensemble.points
    for number, blocks in enumerate(ensemble.blocks):
        for part in blocks.modules(last):
            names = [name for name, one in part.named_modules() if isinstance(one, torch.nn.Linear)]
            torch.manual_seed(number)
            inject_adapter_in_model(LoraConfig(r=2, target_modules=names, init_lora_weights=False), part)
    learned = [weight.requires_grad_("lora_" in name) for name, weight in ensemble.named_parameters()]

    def gradients() -> list[Tensor]:
        ensemble.zero_grad()
        ensemble(**call).sample.square().mean().backward()
        return [weight.grad.clone() for weight in learned if weight.grad is not None]

    expected = gradients()
    assert len(expected) > 4
    with Placement(ensemble, a_plan(ensemble, resident=0), "cpu"):
        with pytest.raises(ValueError, match="should give gradients, but its weights leave the device after it"):
            gradients()
        recompute_blocks(ensemble)
        assert close(gradients(), expected, 1e-4)


def test_mixed_precision_is_kept_for_the_second_run() -> None:
    ensemble = an_ensemble("sd", n=2)
    call = a_call(ensemble)

    def narrow() -> list[Tensor]:
        ensemble.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = ensemble(**call).sample.float().square().mean()
        loss.backward()
        return [weight.grad.clone() for weight in ensemble.aggregator.parameters() if weight.grad is not None]

    expected = narrow()
    recompute_blocks(ensemble)
    assert close(narrow(), expected, 0.05)


def test_experts_keep_next_to_nothing() -> None:
    ensemble = an_ensemble("sd", n=2)
    ensemble.aggregator.gradient_checkpointing = True
    call = a_call(ensemble, side=16)
    weights = {weight.untyped_storage().data_ptr() for weight in ensemble.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    totals = []
    for _ in range(2):
        kept.clear()
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            result = ensemble(**call).sample  # holds what is kept, so that no memory is counted twice
        totals.append(sum(kept.values()))
        recompute_blocks(ensemble)
    assert result.requires_grad
    assert totals[1] < 0.3 * totals[0]


def test_blocks_that_learn_get_their_gradients() -> None:
    ensemble = an_ensemble("sd", n=2)
    call = a_call(ensemble)
    weight = ensemble.denoisers[0].mid_block.resnets[0].conv1.weight.requires_grad_(True)
    gradients(ensemble, call)
    expected = weight.grad.clone()
    recompute_blocks(ensemble)
    gradients(ensemble, call)
    assert torch.equal(weight.grad, expected)


def test_blocks_that_read_what_learns_are_left_alone() -> None:
    ensemble = an_ensemble("sd", n=2)
    call = a_call(ensemble)
    text = call["encoder_hidden_states"].requires_grad_(True)
    gradients(ensemble, call)
    expected = text.grad.clone()
    text.grad = None
    recompute_blocks(ensemble)
    gradients(ensemble, call)
    assert torch.equal(text.grad, expected)


def test_without_gradients_nothing_changes() -> None:
    ensemble = an_ensemble("sd", n=2)
    call = a_call(ensemble)
    with torch.no_grad():
        expected = ensemble(**call).sample
        recompute_blocks(ensemble)
        recompute_blocks(ensemble)  # once more changes nothing
        assert torch.equal(ensemble(**call).sample, expected)


def test_gradients_through_weights_that_leave_are_refused() -> None:
    ensemble = an_ensemble("sd", n=2)
    with (
        Placement(ensemble, a_plan(ensemble, resident=0), "cpu"),
        pytest.raises(ValueError, match=r"its weights leave the device after it. Call recompute_blocks\(ensemble\)"),
    ):
        ensemble(**a_call(ensemble))
