"""The shapes in signatures are checked while tests run (see conftest.py)."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import TypeCheckError

from diffusemble.aggregators.base import Aggregator, AggregatorOptions, Context, Sizes, weighted_sum


def test_a_wrong_rank_is_caught():
    with pytest.raises(TypeCheckError):
        weighted_sum([torch.zeros(2, 4, 5, 6)] * 3, torch.zeros(2, 3, 5))


def test_a_map_that_torch_would_stretch_is_caught():
    with pytest.raises(TypeCheckError):
        weighted_sum([torch.zeros(2, 4, 5, 6)] * 3, torch.zeros(2, 3, 1, 1))


def test_a_wrong_result_of_a_method_is_caught():
    class Short(Aggregator):
        pass

    aggregator = Short(Sizes(channels=(4,), time=8, text=8, experts=3), AggregatorOptions())
    context = Context(torch.zeros(1, 7, 8), torch.zeros(1, 8), torch.zeros(1, 4, 5, 6), torch.zeros(1))
    with pytest.raises(TypeCheckError):
        aggregator.forward(0, "features", context)
