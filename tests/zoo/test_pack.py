import pytest
import torch
from torch import Tensor

from diffusemble.zoo.experts import restore
from recipes.zoo.pack import shrink

SHAPES = {"conv.weight": (12, 7, 3, 3), "linear.weight": (20, 30), "norm.weight": (20,)}


def weights(seed: int, scale: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {key: scale * torch.randn(shape, generator=generator) for key, shape in SHAPES.items()}


def low_rank(base: dict[str, Tensor], rank: int) -> dict[str, Tensor]:
    """`base` plus a change of the given rank, exact in float16."""
    generator = torch.Generator().manual_seed(5)
    expert = {}
    for key, weight in base.items():
        rows, columns = len(weight), weight[0].numel()
        up = torch.randint(-2, 3, (rows, rank), generator=generator).float()
        down = torch.randint(-2, 3, (rank, columns), generator=generator).float()
        expert[key] = weight + (up @ down).view(weight.shape) / 8
    return expert


def test_a_change_of_low_rank_comes_back() -> None:
    base = {key: weight.half() for key, weight in weights(0).items()}
    expert = low_rank({key: weight.float() for key, weight in base.items()}, rank=3)
    restored = restore(base, shrink(base, expert, rank=3))
    for key, weight in expert.items():
        torch.testing.assert_close(restored[key].float(), weight, atol=4e-3, rtol=2e-3)


def test_full_rank_is_exact() -> None:
    base = {key: weight.half() for key, weight in weights(0).items()}
    expert = weights(1)
    restored = restore(base, shrink(base, expert, rank=1000))
    for key, weight in expert.items():
        assert torch.equal(restored[key], weight.half())


def test_the_error_is_the_part_of_the_spectrum_left_out() -> None:
    base = {key: weight.half() for key, weight in weights(0).items()}
    expert = {key: base[key].float() + change for key, change in weights(1, 0.1).items()}
    restored = restore(base, shrink(base, expert, rank=4))
    for key in ("conv.weight", "linear.weight"):
        change = (expert[key] - base[key].float()).flatten(1)
        left_out = torch.linalg.svdvals(change)[4:].square().sum().sqrt()
        error = (restored[key].float() - expert[key]).norm()
        assert float(error) == pytest.approx(float(left_out), rel=0.02)


def test_what_did_not_change_is_not_shipped() -> None:
    base = {key: weight.half() for key, weight in weights(0).items()}
    assert shrink(base, {key: weight.float() for key, weight in base.items()}, rank=2) == {}
    assert torch.equal(restore(base, {})["norm.weight"], base["norm.weight"])


def test_factors_are_small() -> None:
    base, expert = weights(0), weights(1)
    delta = shrink(base, expert, rank=2)
    assert delta["conv.weight.up"].shape == (12, 2)
    assert delta["conv.weight.down"].shape == (2, 63)
    assert delta["norm.weight"].shape == (20,)
    assert {tensor.dtype for tensor in delta.values()} == {torch.float16}
