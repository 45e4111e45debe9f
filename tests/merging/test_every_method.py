"""Laws that hold for every row of ``registry.MERGES``."""

from collections.abc import Sequence

import pytest
import torch

from diffusemble.merging.config import MergeConfig
from diffusemble.merging.merge import build_method
from diffusemble.merging.methods import Method, Tensors
from diffusemble.registry import MERGES, lookup

SHAPES = {"matrix": (7, 5), "kernel": (4, 3, 3, 3), "vector": (6,), "number": ()}


def needs_base(name: str) -> bool:
    return lookup(MERGES, name, "method").needs_base


def build(name: str, count: int = 2, **options: object) -> Method:
    base = "base" if needs_base(name) else None
    return build_method(MergeConfig(experts=["a"], out="o", method=name, base=base, options=options), count)


def models(count: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(4)
    drawn = ({k: torch.randn(s, generator=generator, dtype=torch.float64) for k, s in SHAPES.items()} for _ in "123456")
    return list(drawn)[:count]


def everything(experts: Sequence[dict[str, torch.Tensor]], base: dict[str, torch.Tensor] | None) -> list[Tensors]:
    return [Tensors(key, [e[key] for e in experts], None if base is None else base[key]) for key in SHAPES]


def merge(name: str, experts: Sequence[dict[str, torch.Tensor]], base: dict[str, torch.Tensor], **options: object):
    method = build(name, len(experts), **options)
    given = everything(experts, base if method.needs_base else None)
    method = method.prepare(iter(given))
    return {one.key: method.merge(one, method.amounts) for one in given}


@pytest.mark.parametrize("name", MERGES)
def test_copies_of_one_model_are_that_model(name):
    one, base = models(2)
    options = {"ties": {"density": 1.0}, "dare": {"drop": 0.0}}.get(name, {})
    if name in ("add-difference", "train-difference"):
        base = one  # nothing was changed
    for key, tensor in merge(name, [one, one], base, **options).items():
        assert tensor.shape == SHAPES[key]
        torch.testing.assert_close(tensor, one[key], rtol=0, atol=1e-15)


@pytest.mark.parametrize("name", MERGES)
def test_inputs_stay_as_they_are(name):
    a, b, base = models(3)
    copies = [{key: tensor.clone() for key, tensor in one.items()} for one in (a, b, base)]
    merge(name, [a, b], base)
    for one, copy in zip((a, b, base), copies, strict=True):
        assert all(torch.equal(one[key], copy[key]) for key in SHAPES)


@pytest.mark.parametrize("name", ["weighted", "soup", "ties"])
def test_the_order_of_experts_does_not_matter(name):
    a, b, c, base = models(4)
    first, second = merge(name, [a, b, c], base), merge(name, [c, a, b], base)
    for key in SHAPES:
        torch.testing.assert_close(first[key], second[key], rtol=0, atol=1e-14)


def test_soup_is_weighted_with_equal_shares():
    experts = models(5)
    soup, mean = merge("soup", experts, {}), merge("weighted", experts, {}, shares=[2] * 5)
    for key in SHAPES:
        torch.testing.assert_close(soup[key], torch.stack([one[key] for one in experts]).mean(dim=0))
        assert torch.equal(soup[key], mean[key])


def test_shares_and_ratios_at_their_ends():
    a, b, base = models(3)
    for name in ("weighted", "slerp"):
        for shares, expected in (([1, 0], a), ([0, 3], b)):
            for key, tensor in merge(name, [a, b], base, shares=shares).items():
                torch.testing.assert_close(tensor, expected[key])
    for name in ("add-difference", "train-difference"):
        for key, tensor in merge(name, [a, b], base, ratio=0).items():
            assert torch.equal(tensor, a[key])
    for key, tensor in merge("cosine", [a, b], base, ratio=9).items():
        assert torch.equal(tensor, b[key])


def test_dare_without_dropping_is_a_mean_and_ties_of_one_direction_too():
    a, b, base = models(3)
    for key, tensor in merge("dare", [a, b], base, drop=0, shares=[1, 3], scale=0.5).items():
        torch.testing.assert_close(tensor, base[key] + 0.5 * (0.25 * a[key] + 0.75 * b[key] - base[key]))
    near = {key: base[key] + 2 * (a[key] - base[key]) for key in SHAPES}
    for key, tensor in merge("ties", [a, near], base, density=1).items():
        torch.testing.assert_close(tensor, base[key] + 1.5 * (a[key] - base[key]))


@pytest.mark.parametrize(
    ("name", "count", "options", "message"),
    [
        ("slerp", 3, {}, "Slerp merges exactly 2 experts; got 3.*choose the method weighted"),
        ("cosine", 3, {}, "Cosine merges exactly 2 experts; got 3"),
        ("train-difference", 4, {}, "TrainDifference merges exactly 2 experts; got 4"),
        ("soup", 1, {}, "Soup merges two experts or more; got 1"),
        ("weighted", 3, {"shares": [1, 2]}, r"one share per model.*got \[1.0, 2.0\] for 3 models"),
        ("dare", 2, {"shares": [1, -1]}, "DARE takes one share per model, not summing to zero"),
        ("add-difference", 4, {"ratio": [1, 2]}, "one for every expert after the first; got 2 numbers for 4.*Give 3"),
        ("ties", 2, {"density": 0}, "options of the method 'ties': density must be greater than 0; got 0"),
        ("dare", 2, {"drop": 1}, "drop must be less than 1"),
        ("soup", 2, {"shares": [1, 2]}, "options of the method 'soup': there is no key 'shares'"),
        ("weighted", 2, {"share": [1, 2]}, "no key 'share' .*did you mean 'shares'"),
    ],
)
def test_what_does_not_fit_a_method_is_refused(name, count, options, message):
    with pytest.raises(ValueError, match=message):
        build(name, count, **options)


def test_a_base_is_needed_or_unused():
    with pytest.raises(ValueError, match=r"'ties' takes differences from a base model; none was given.*--base"):
        build_method(MergeConfig(experts=["a"], out="o", method="ties"), 2)
    with pytest.raises(ValueError, match="'soup' uses no base model; got 'c'"):
        build_method(MergeConfig(experts=["a"], out="o", method="soup", base="c"), 2)
    with pytest.raises(ValueError, match="'w' came without one"):
        build("ties").merge(Tensors("w", [torch.zeros(2)] * 2), ())
    with pytest.raises(ValueError, match="needs a pass over all tensors first"):
        build("cosine").merge(Tensors("w", [torch.zeros(2)] * 2), (0.0,))
