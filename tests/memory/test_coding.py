"""Eight bits keep what they promise."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diffusemble.memory.bundle import Bundle
from diffusemble.memory.coding import decode, encode

SIZES = torch.tensor([1e-3, 1, 40, 1e-8, 9]).view(5, 1, 1, 1)
WEIGHT = SIZES * torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(0))


def test_int8_is_within_half_a_step_of_every_row() -> None:
    out = torch.empty_like(WEIGHT)
    decode(encode(WEIGHT, "int8"), out)
    step = WEIGHT.abs().flatten(1).amax(1) / 127
    assert ((out - WEIGHT).abs().flatten(1) <= 0.5001 * step[:, None]).all()


def test_float8_is_within_a_sixteenth_of_every_entry() -> None:
    out = torch.empty_like(WEIGHT)
    decode(encode(WEIGHT, "float8"), out)
    tiny = WEIGHT.abs().flatten(1).amax(1)[:, None] / 28672  # below, steps are even
    assert ((out - WEIGHT).abs().flatten(1) <= (WEIGHT.abs().flatten(1) / 15.9).maximum(tiny / 2)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("storage", "error"), [("int8", 0.5 / 127), ("float8", 1 / 15.9)])
def test_small_rows_are_as_close_in_half_precision(storage: str, error: float, dtype: torch.dtype) -> None:
    weight = torch.tensor([[1e-3], [1e-4], [1e-5]]).mul(torch.linspace(0.5, 1, 9)).to(dtype)
    out = torch.empty_like(weight)
    decode(encode(weight, storage), out)
    rounding = torch.finfo(dtype).eps if dtype == torch.bfloat16 else 6e-8 / 1e-5  # float16 is subnormal here
    far = (out.float() - weight.float()).abs() / weight.float().amax(1, keepdim=True)
    assert far.max() <= error + rounding


def test_a_row_of_zeros_stays_zero() -> None:
    out = torch.ones(2, 3)
    decode(encode(torch.zeros(2, 3), "float8"), out)
    assert torch.equal(out, torch.zeros(2, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_bundle_gives_back_what_it_took(dtype: torch.dtype) -> None:
    layers = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Linear(7, 2)).to(dtype)
    layers[0].to(memory_format=torch.channels_last)
    weights = [*layers.parameters(), *layers.buffers()]
    before = [(weight.clone(), weight.stride()) for weight in weights]
    bundle = Bundle(weights)
    bundle.rest()
    bundle.show(bundle.home.clone())
    for weight, (value, stride) in zip(weights, before, strict=True):
        assert torch.equal(weight, value)
        assert weight.stride() == stride
        assert weight.dtype == value.dtype
