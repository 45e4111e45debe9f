"""Merged files against those of another implementation (see ``golden/merging/README.md``)."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffusemble.merging.config import MergeConfig
from diffusemble.merging.merge import merge

GOLDEN = Path(__file__).parents[1] / "golden/merging"


@pytest.mark.parametrize(
    ("method", "experts", "options"),
    [
        ("weighted", ("a", "b"), {"shares": [0.7, 0.3]}),
        ("soup", ("a", "b", "base"), {}),
        ("slerp", ("a", "b"), {"shares": [0.7, 0.3]}),
        ("add-difference", ("a", "b"), {"ratio": 0.7}),
        ("train-difference", ("a", "b"), {"ratio": 0.7}),
        ("ties", ("a", "b"), {"density": 1.0, "scale": 0.8}),
    ],
)
def test_merged_files_agree_with_another_implementation(method, experts, options, tmp_path):
    base = str(GOLDEN / "base.safetensors") if method in ("add-difference", "train-difference", "ties") else None
    sources = tuple(str(GOLDEN / f"{name}.safetensors") for name in experts)
    out = tmp_path / "merged.safetensors"
    merge(MergeConfig(experts=sources, method=method, options=options, base=base, out=str(out)))
    ours, theirs = load_file(out), load_file(GOLDEN / f"{method}.safetensors")
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        torch.testing.assert_close(ours[key], tensor, rtol=1e-6, atol=1e-7)
