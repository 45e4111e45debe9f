"""Formulas of weight merging."""

import pytest
import torch

from diffusemble.merging.methods import weighted_average
from tests.tiny import tiny_unet


def test_average_is_linear_in_the_shares():
    a, b = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, -2.0])}
    torch.testing.assert_close(weighted_average([a, b])["w"], torch.tensor([2.0, 0.0]))
    torch.testing.assert_close(weighted_average([a, b], [1, 3])["w"], torch.tensor([2.5, -1.0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_copies_of_one_model_give_that_model(dtype):
    weights = tiny_unet(3).to(dtype).state_dict()
    merged = weighted_average([weights] * 3)
    assert merged.keys() == weights.keys()
    for key, tensor in weights.items():
        assert torch.equal(merged[key], tensor)
        assert merged[key].dtype == dtype


def test_counts_are_not_averaged():
    counters = [{"steps": torch.tensor(n)} for n in (4, 9)]
    assert weighted_average(counters)["steps"] == 4


def test_what_does_not_fit_is_named():
    a, b = {"w": torch.zeros(2)}, {"w": torch.zeros(3)}
    with pytest.raises(ValueError, match="at least one model"):
        weighted_average([])
    with pytest.raises(ValueError, match=r"'w' is \(3,\) in model 2 and \(2,\) in model 1"):
        weighted_average([a, b])
    with pytest.raises(ValueError, match="model 2 lacks 'w'"):
        weighted_average([a, {}])
    with pytest.raises(ValueError, match=r"one share per model.*\[1\] for 2 models"):
        weighted_average([a, a], [1])
