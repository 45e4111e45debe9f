"""The formulas of LoRA, LoHa, LoKr and DoRA, against peft's own layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from torch import Tensor, nn

from diffusemble.experts.additions.formulas import changed, difference, lora


class Pair(nn.Module):
    """A linear layer and a convolution, sizes that factorise differently."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 20)
        self.convolution = nn.Conv2d(6, 10, 3)


def adapted(config: Any) -> Any:
    torch.manual_seed(0)
    model = get_peft_model(Pair(), config)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = torch.rand_like(parameter) + (0.5 if "magnitude" in name else -0.5)
    return model


def factors_of(layer: nn.Module, names: dict[str, str]) -> dict[str, Tensor]:
    """The tensors of a peft layer by the names of our formulas."""
    state: dict[str, Tensor] = layer.state_dict()
    return {ours: state[theirs] for theirs, ours in names.items() if theirs in state}


HADAMARD = {
    f"{name}.default": name for number in "12" for name in (f"hada_w{number}_a", f"hada_w{number}_b", f"hada_t{number}")
}
KRONECKER = {f"lokr_{name}.default": f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")}
LORA = {
    "lora_B.default.weight": "up",
    "lora_A.default.weight": "down",
    "lora_magnitude_vector.default.weight": "magnitude",
}
BOTH = ["linear", "convolution"]


@pytest.mark.parametrize("where", BOTH)
@pytest.mark.parametrize(
    ("config", "names"),
    [
        (LoHaConfig(r=3, alpha=5, target_modules=BOTH), HADAMARD),
        (LoHaConfig(r=3, alpha=5, target_modules=BOTH, use_effective_conv2d=True), HADAMARD),
        (LoKrConfig(r=1, alpha=5, target_modules=BOTH), KRONECKER),
        (LoKrConfig(r=1, alpha=5, target_modules=BOTH, decompose_both=True), KRONECKER),
        (LoKrConfig(r=1, alpha=5, target_modules=BOTH, use_effective_conv2d=True), KRONECKER),
        (LoraConfig(r=3, lora_alpha=5, target_modules=BOTH), LORA),
    ],
    ids=["loha", "loha-kernel", "lokr", "lokr-both", "lokr-kernel", "lora"],
)
def test_a_difference_is_what_peft_adds(config: Any, names: dict[str, str], where: str) -> None:
    layer = getattr(adapted(config).base_model.model, where)
    mine = difference(layer.weight, factors_of(layer, names), alpha=5)
    assert mine.abs().sum() > 0.1
    torch.testing.assert_close(mine.reshape(layer.weight.shape), layer.get_delta_weight("default"))


@pytest.mark.parametrize("where", BOTH)
def test_with_a_magnitude_the_weight_is_that_of_peft(where: str) -> None:
    model = adapted(LoraConfig(r=3, lora_alpha=5, target_modules=BOTH, use_dora=True))
    layer = getattr(model.base_model.model, where)
    before, factors = layer.weight.detach().clone(), factors_of(layer, LORA)
    magnitude = factors.pop("magnitude").reshape(-1, 1)
    whole = changed(before, difference(before, factors, alpha=5), 1.0, magnitude)
    layer.merge()
    torch.testing.assert_close(whole, layer.weight.detach())
    half = changed(before, difference(before, factors, alpha=5), 0.5, magnitude)
    torch.testing.assert_close(half, (before + whole) / 2)


def test_a_magnitude_of_every_input_scales_columns() -> None:
    weight, delta, size = torch.rand(4, 3), torch.rand(4, 3), torch.tensor([[1.0, 2.0, 3.0]])
    columns = changed(weight, delta, 1.0, size).norm(dim=0)
    torch.testing.assert_close(columns, size[0])


def test_a_kernel_between_two_factors_is_their_composition() -> None:
    generator = torch.Generator().manual_seed(1)
    up, mid, down = (torch.randn(shape, generator=generator) for shape in ((5, 3, 1, 1), (3, 3, 2, 2), (3, 4, 1, 1)))
    picture = torch.randn(1, 4, 6, 6, generator=generator)
    step = nn.functional.conv2d(nn.functional.conv2d(picture, down), mid)
    torch.testing.assert_close(nn.functional.conv2d(picture, lora(up, down, mid)), nn.functional.conv2d(step, up))


def test_full_kronecker_factors_are_not_scaled() -> None:
    first, second = torch.rand(2, 3), torch.rand(4, 5)
    factors = {"lokr_w1": first, "lokr_w2": second}
    assert torch.equal(difference(torch.zeros(8, 15), factors, alpha=7.0), torch.kron(first, second))


def test_a_missing_factor_is_named() -> None:
    with pytest.raises(ValueError, match="the factor 'hada_w2_a' is missing beside hada_w1_a, hada_w1_b"):
        difference(torch.zeros(2, 2), {"hada_w1_a": torch.ones(2, 1), "hada_w1_b": torch.ones(1, 2)})
