"""The laws on FLUX and SD3, whose text tokens are aggregated beside the image: they do not depend on the denoiser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusemble.aggregators.base import weighted_tokens
from law_cases import EXCEPTIONS
from law_families import TRANSFORMERS
from laws import EXPERTS, LAWS, call_for, denoisers, ensemble_of, what_is_saved_is_loaded

NAMES = ("sabw", "mean")
HOLDS = [
    (law, name, family)
    for law in LAWS
    for name in NAMES
    for family in TRANSFORMERS
    if law.__name__ not in EXCEPTIONS.get(name, {})
]


def named(value: Any) -> str:
    return value if isinstance(value, str) else value.__name__


@pytest.mark.parametrize(("law", "name", "family"), HOLDS, ids=named)
def test_law(law: Callable[..., None], name: str, family: str):
    law(name, TRANSFORMERS[family])


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_what_is_saved_is_loaded(family: str, tmp_path: Path):
    what_is_saved_is_loaded("sabw", tmp_path, TRANSFORMERS[family])


def test_text_tokens_get_the_mean_of_their_experts_map():
    tokens = [torch.randn(2, 7, 5) for _ in range(3)]
    maps = torch.rand(2, 3, 4, 6).softmax(dim=1)
    expected = torch.einsum("bn,nbsd->bsd", maps.flatten(2).mean(dim=2), torch.stack(tokens))
    torch.testing.assert_close(weighted_tokens(tokens, maps), expected)


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_after_a_point_every_expert_reads_the_same_text_tokens(family: str):
    models, call = denoisers(1, 2, 3, family=TRANSFORMERS[family]), call_for("sabw", family=TRANSFORMERS[family])
    ensemble = ensemble_of("sabw", models)
    seen: list[torch.Tensor] = []
    second = ensemble.points[1]
    for blocks in ensemble.blocks:
        (module,) = blocks.modules(second)
        module.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    call.of(ensemble)
    assert len(seen) == EXPERTS
    assert all(torch.equal(tokens, seen[0]) for tokens in seen)
