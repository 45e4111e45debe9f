"""Several kinds of controls in one call."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusemble.controls import ControlledUNet, ImagePrompt, ImagePromptCondition, Interaction, Migc, MigcCondition
from diffusemble.controls.base import Control
from gated_cases import inputs, opened, relations
from tiny import WIDTH, randomised, tiny_unet

PICTURE = ImagePromptCondition(torch.randn(1, 12, generator=torch.Generator().manual_seed(0)))
INSTANCES = MigcCondition(
    *(torch.randn(2, *shape, generator=torch.Generator().manual_seed(1)) for shape in ((5, WIDTH), (WIDTH,))),
    boxes=torch.tensor([(0.0, 0.1, 0.5, 0.8), (0.4, 0.3, 1.0, 0.9)]),
    height=64,
    width=64,
    until=1.0,
)


@pytest.fixture(scope="module")
def unet() -> Any:
    return tiny_unet()


@pytest.fixture(scope="module")
def controls(unet: Any) -> dict[str, Control]:
    torch.manual_seed(2)
    made = [
        opened(Interaction, unet),
        ImagePrompt.from_unet(unet, 12),
        randomised(Migc.from_unet(unet, slots=8, hidden=9, heads=4, reduction=4)),
    ]
    return {control.key: control for control in made}


def run(unet: Any, controls: dict[str, Control], conditions: dict[str, Any], order: tuple[str, ...] = ()) -> Tensor:
    model = ControlledUNet(unet, [controls[key] for key in order or conditions])
    with torch.no_grad():
        return model(*inputs(), cross_attention_kwargs=conditions).sample


def test_all_three_act_at_once(unet: Any, controls: dict[str, Control]):
    conditions = {"interaction": relations(), "image_prompt": PICTURE, "migc": INSTANCES}
    together = run(unet, controls, conditions)
    for left_out in conditions:
        rest = {key: condition for key, condition in conditions.items() if key != left_out}
        without = run(unet, controls, rest)
        assert not torch.allclose(together[1], without[1], atol=1e-3), left_out
        # Attached without a condition is the same as not attached.
        assert torch.equal(run(unet, controls, rest, tuple(conditions)), without)
    neutral = {**conditions, "image_prompt": replace(PICTURE, scale=0.0), "migc": replace(INSTANCES, until=0.0)}
    assert torch.equal(run(unet, controls, neutral), run(unet, controls, {"interaction": conditions["interaction"]}))


def test_gated_layers_do_not_care_for_the_order(unet: Any, controls: dict[str, Control]):
    conditions = {"interaction": relations(), "image_prompt": PICTURE, "migc": INSTANCES}
    expected = run(unet, controls, conditions)
    for order in (("image_prompt", "interaction", "migc"), ("image_prompt", "migc", "interaction")):
        assert torch.equal(run(unet, controls, conditions, order), expected)


def test_afterwards_the_unet_is_the_plain_one(unet: Any, controls: dict[str, Control]):
    plain, modules = run(unet, {}, {}), [name for name, _ in unet.named_modules()]
    run(unet, controls, {"interaction": relations(), "image_prompt": PICTURE, "migc": INSTANCES})
    assert torch.equal(run(unet, {}, {}), plain)
    assert [name for name, _ in unet.named_modules()] == modules


def test_an_image_prompt_does_not_replace_migc(unet: Any, controls: dict[str, Control]):
    conditions = {"migc": INSTANCES, "image_prompt": PICTURE}
    with pytest.raises(ValueError, match="List image_prompt before other controls"):
        run(unet, controls, conditions)
    nothing = {**conditions, "image_prompt": replace(PICTURE, scale=0.0)}
    expected = run(unet, controls, {"migc": INSTANCES})
    assert torch.equal(run(unet, controls, nothing, ("image_prompt", "migc")), expected)
