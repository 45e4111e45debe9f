import pytest
import torch
from torch import Tensor

from diffusemble.zoo.experts import restore
from recipes.zoo.pack import shrink

SHAPES = {"conv.weight": (12, 7, 3, 3), "linear.weight": (20, 30), "norm.weight": (20,)}
MATRICES = ("conv.weight", "linear.weight")


def weights(seed: int, scale: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {key: scale * torch.randn(shape, generator=generator) for key, shape in SHAPES.items()}


def halves(seed: int) -> dict[str, Tensor]:
    return {key: weight.half() for key, weight in weights(seed).items()}


def test_a_change_on_the_levels_comes_back_exactly() -> None:
    generator = torch.Generator().manual_seed(5)
    base = {key: torch.zeros(shape).half() for key, shape in SHAPES.items()}
    expert = {key: torch.randint(-7, 8, shape, generator=generator) / 64 for key, shape in SHAPES.items()}
    for key in MATRICES:
        expert[key].flatten(1)[:, 0] = 7 / 64
    restored = restore(base, shrink(base, expert))
    for key, weight in expert.items():
        assert torch.equal(restored[key].float(), weight)


def test_the_error_is_at_most_half_a_level_of_the_row() -> None:
    base = halves(0)
    expert = {key: base[key].float() + change for key, change in weights(1, 0.1).items()}
    restored = restore(base, shrink(base, expert))
    for key in MATRICES:
        change = (expert[key] - base[key].float()).flatten(1)
        error = (restored[key].float() - expert[key]).flatten(1).abs()
        rounding = 2e-3 * base[key].float().abs().max()
        assert (error <= change.abs().amax(dim=1, keepdim=True) / 14 * 1.01 + rounding).all()


def test_vectors_are_exact() -> None:
    base, expert = halves(0), weights(1)
    assert torch.equal(restore(base, shrink(base, expert))["norm.weight"], expert["norm.weight"].half())


def test_what_did_not_change_is_not_shipped() -> None:
    base = halves(0)
    assert shrink(base, {key: weight.float() for key, weight in base.items()}) == {}
    assert torch.equal(restore(base, {})["norm.weight"], base["norm.weight"])


def test_a_row_that_did_not_change_stays_and_an_odd_row_is_padded() -> None:
    base, expert = halves(0), weights(1)
    expert["linear.weight"][3] = base["linear.weight"][3].float()
    delta = shrink(base, expert)
    assert torch.equal(restore(base, delta)["linear.weight"][3], base["linear.weight"][3])
    assert delta["conv.weight.levels"].shape == (12, 32)
    assert restore(base, delta)["conv.weight"].shape == (12, 7, 3, 3)


def test_two_numbers_share_a_byte() -> None:
    delta = shrink(weights(0), weights(1))
    assert {key: (tensor.dtype, tuple(tensor.shape)) for key, tensor in delta.items()} == {
        "conv.weight.levels": (torch.uint8, (12, 32)),
        "conv.weight.step": (torch.float16, (12,)),
        "linear.weight.levels": (torch.uint8, (20, 15)),
        "linear.weight.step": (torch.float16, (20,)),
        "norm.weight": (torch.float16, (20,)),
    }


def test_a_tensor_the_base_does_not_have_is_named() -> None:
    with pytest.raises(ValueError, match=r"this one has 'linear\.weight\.up'; pack it again"):
        restore(halves(0), {"linear.weight.up": torch.zeros(2, 2)})
