"""Every formula against what can be worked out by hand."""

import math

import pytest
import torch

from diffusemble.merging.methods.add_difference import add_difference
from diffusemble.merging.methods.cosine import Range, cosine, similarity, trimmed_range
from diffusemble.merging.methods.dare import chance, drop_and_rescale
from diffusemble.merging.methods.slerp import slerp
from diffusemble.merging.methods.ties import ties, trim
from diffusemble.merging.methods.train_difference import train_difference
from diffusemble.merging.methods.weighted import weighted


def vector(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


A, B, C = noise(4, 3, 2, seed=1), noise(4, 3, 2, seed=2), noise(4, 3, 2, seed=3)


def test_weighted_is_a_sum_and_does_not_read_models_without_a_share():
    torch.testing.assert_close(weighted([A, B, C], (0.5, 0.25, 0.25)), A / 2 + (B + C) / 4)
    assert torch.equal(weighted([A, torch.full_like(A, math.nan)], (1.0, 0.0)), A)
    with pytest.raises(ValueError, match="needs a share that is not zero"):
        weighted([A, B], (0.0, 0.0))


def test_add_difference_adds_what_training_changed():
    assert torch.equal(add_difference([A, B], C, (0.0,)), A)
    torch.testing.assert_close(add_difference([A, B, C], C, (0.5, 2.0)), A + (B - C) / 2)
    torch.testing.assert_close(add_difference([C, B], C, (1.0,)), B)


def test_train_difference_by_hand():
    #            B is the base, A is B, all are one, half of each
    first, second, base = vector(5, 2, 1, 0), vector(3, 2, 1, 1), vector(3, 0, 1, 0)
    expected = vector(5, 2, 1, 0 + 1.8 * 0.7 * 0.5)
    torch.testing.assert_close(train_difference(first, second, base, 0.7), expected)
    assert torch.equal(train_difference(A, B, B, 1.0), A)
    assert torch.equal(train_difference(A, B, C, 0.0), A)
    change = train_difference(A, B, C, 1.0) - A
    assert torch.equal(change.sign(), (B - C).sign())
    assert (change.abs() <= 1.8 * (B - C).abs()).all()


def test_similarity_is_the_mean_of_columns_and_the_whole():
    one, other = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    whole = 1 / (math.sqrt(5) * math.sqrt(2))
    torch.testing.assert_close(similarity(one, other), torch.tensor([(1 + whole) / 2, whole / 2]))
    torch.testing.assert_close(similarity(vector(1, 0), vector(1, 1)), vector(math.sqrt(0.5))[0])
    assert similarity(vector(2)[0], vector(-3)[0]) == -1
    assert similarity(vector(0, 0), vector(0, 0)) == 1
    assert similarity(vector(0, 0), vector(1, 0)) == 0


def test_the_range_leaves_out_a_hundredth_at_both_ends():
    values = torch.arange(201.0)[torch.randperm(201, generator=torch.Generator().manual_seed(0))]
    assert trimmed_range(values) == Range(2, 198)
    assert trimmed_range(torch.tensor([3.0])) == Range(3, 3)
    many = noise(977, seed=5)
    low, high = torch.quantile(many, 0.01), torch.quantile(many, 0.99)
    kept = many[(many >= low) & (many <= high)]
    assert trimmed_range(many) == Range(float(kept.min()), float(kept.max()))


def test_cosine_takes_what_is_alike_from_the_first():
    one, other = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    whole = 1 / math.sqrt(10)
    found = Range(whole / 2, (1 + whole) / 2)  # the second column is least alike, the first most
    torch.testing.assert_close(cosine(one, other, 0.0, found), torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    torch.testing.assert_close(cosine(one, other, -0.25, found), torch.tensor([[1.0, 0.75], [0.0, 0.5]]))
    assert torch.equal(cosine(A, B, 1.0, Range(-1, 1)), B)
    torch.testing.assert_close(cosine(A, B, -1.0, Range(-1, 1)), A)
    torch.testing.assert_close(cosine(A, B, 0.25, Range(0.5, 0.5)), 0.75 * A + 0.25 * B)


def test_slerp_moves_on_the_arc():
    torch.testing.assert_close(slerp(vector(1, 0), vector(0, 1), 0.5), vector(1, 1) / math.sqrt(2))
    torch.testing.assert_close(slerp(vector(1, 0), vector(0, 1), 1 / 3), vector(math.sqrt(3), 1) / 2)
    for step in (0.0, 0.3, 1.0):
        length = (1 - step) * A.norm() + step * B.norm()
        torch.testing.assert_close(slerp(A, B, step).norm(), length)
    torch.testing.assert_close(slerp(A, B, 0.0), A)
    torch.testing.assert_close(slerp(A, B, 1.0), B)
    torch.testing.assert_close(slerp(A, B, 0.3), slerp(B, A, 0.7))


def test_slerp_is_a_line_where_there_is_no_arc():
    for one, other in ((A, 3 * A), (A, -A), (A, torch.zeros_like(A)), (A, A * (1 + 1e-12))):
        torch.testing.assert_close(slerp(one, other, 0.25), 0.75 * one + 0.25 * other)
    near = A + 2e-4 * B  # on both sides of the threshold the result is the same to rounding
    torch.testing.assert_close(slerp(A, near, 0.5), (A + near) / 2, rtol=0, atol=1e-7)


def test_trim_keeps_the_largest():
    change = vector(0.1, -5, 3, -0.2, 4)
    assert trim(change, 0.4).tolist() == [0, -5, 0, 0, 4]
    assert trim(change, 1.0).tolist() == change.tolist()
    assert trim(change, 0.01).tolist() == [0, -5, 0, 0, 0]
    assert trim(vector(1, -1, 0.5), 0.33).tolist() == [1, -1, 0]  # as large as the last one that is kept


def test_ties_elects_signs_by_hand():
    base = vector(10, 10, 10, 10, 10)
    changes = (vector(4, -1, 2, 0, 3), vector(-1, -3, 2, 0, 0), vector(-2, 1, -5, 0, 0))
    # sums 1, -3, -1, 0, 3: + elects 4 alone, - elects -1 and -3, - elects -5, none, + elects 3 alone
    elected = vector(4, -2, -5, 0, 3)
    torch.testing.assert_close(ties([base + change for change in changes], base, 1.0), elected)
    # each keeps its two largest: 4 and 3; -3 and 2; -2 and -5
    torch.testing.assert_close(ties([base + change for change in changes], base, 0.4), vector(4, -3, -5, 0, 3))


def test_dare_drops_and_rescales():
    change = torch.full((200, 300), 2.0, dtype=torch.float64)
    left = drop_and_rescale(change, 0.75, chance(7, 0, "w"))
    assert left.unique().tolist() == [0.0, 8.0]
    kept = float((left != 0).double().mean())
    assert abs(kept - 0.25) < 5 * math.sqrt(0.25 * 0.75 / change.numel())
    assert torch.equal(drop_and_rescale(change, 0.0, chance(7, 0, "w")), change)
    again = drop_and_rescale(change, 0.75, chance(7, 0, "w"))
    assert torch.equal(left, again)
    for other in (chance(8, 0, "w"), chance(7, 1, "w"), chance(7, 0, "v")):
        assert not torch.equal(drop_and_rescale(change, 0.75, other), left)


def test_dare_is_the_difference_on_average():
    change = noise(6, 5)
    mean = sum(drop_and_rescale(change, 0.5, chance(seed, 0, "w")) for seed in range(4000)) / 4000
    torch.testing.assert_close(mean, change, rtol=0, atol=5 * float(change.abs().max()) / math.sqrt(4000))
