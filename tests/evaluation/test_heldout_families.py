"""The held-out loss of every family: an ensemble of copies has that of the expert alone, for the same noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from diffusemble.evaluation.heldout import HeldOut, losses
from diffusemble.evaluation.systems import System
from tests.tiny import as_expert, tiny_refiner, tiny_sdxl_pipeline
from tests.tiny_dit import tiny_flux_pipeline, tiny_sd3_pipeline
from tests.tiny_ensembles import copies

MAKERS = {"sdxl": tiny_sdxl_pipeline, "refiner": tiny_refiner, "flux": tiny_flux_pipeline, "sd3": tiny_sd3_pipeline}


@pytest.mark.parametrize("family", MAKERS)
def test_copies_of_an_expert_have_its_loss(family: str) -> None:
    pipeline: Any = MAKERS[family]()
    held = HeldOut(("a", "b"), ("a fox", "a red jug"), torch.randn(2, 4, 8, 8, generator=torch.manual_seed(0)))
    found = []
    for drawing in (pipeline, copies(as_expert(pipeline)).eval().pipeline()):
        system = System("one", "one", "control", drawing)
        found.append(losses(system.predict, held, system.diffusion, (100, 700)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
    assert found[0].min() > 0.1
    assert system.diffusion.flows == (family in ("flux", "sd3"))
