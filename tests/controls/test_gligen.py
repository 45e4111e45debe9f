"""GLIGEN against diffusers' own implementation, in its network and in its pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionGLIGENPipeline
from torch import Tensor

from diffusemble.controls import ControlledUNet, Gligen, gligen_condition, pipeline_with, plain_unet
from gated_cases import inputs, things
from tiny import WIDTH, tiny_pipeline, tiny_unet

THINGS = [("a red cat", (0.1, 0.2, 0.5, 0.9)), ("dog", (0.5, 0.0, 1.0, 0.75))]


@pytest.fixture(scope="module")
def published() -> Any:
    return tiny_unet(attention_type="gated", attention_head_dim=8)


@pytest.fixture(scope="module")
def ours(published: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Gligen]:
    folder: Path = tmp_path_factory.mktemp("published")
    published.save_pretrained(folder / "unet")
    return plain_unet(folder), Gligen.from_pretrained(folder)


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny_pipeline()


def padded(rows: Tensor) -> Tensor:
    return torch.cat([rows, rows.new_zeros(30 - len(rows), *rows.shape[1:])]).expand(2, -1, *rows.shape[1:])


def test_the_network_is_the_same_bit_for_bit(published: Any, ours: tuple[Any, Gligen]):
    condition = things(3)
    masks = padded(torch.ones(3)) * torch.tensor([[0.0], [1.0]])
    kwargs = {"boxes": padded(condition.boxes), "positive_embeddings": padded(condition.phrases), "masks": masks}
    unet, control = ours
    with torch.no_grad():
        expected = published(*inputs(), cross_attention_kwargs={"gligen": kwargs}).sample
        result = ControlledUNet(unet, [control])(*inputs(), cross_attention_kwargs={"gligen": condition}).sample
    assert torch.equal(result, expected)


@pytest.mark.parametrize("until", [1.0, 0.5])
def test_the_pipeline_is_the_same_bit_for_bit(published: Any, ours: tuple[Any, Gligen], until: float):
    plain = tiny_pipeline(unet=ours[0])
    parts = {**plain.components, "unet": published, "requires_safety_checker": False}
    del parts["image_encoder"]
    reference = StableDiffusionGLIGENPipeline(**parts)
    reference.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 4, "height": 16, "width": 16, "output_type": "latent"}
    expected = reference(
        "two animals",
        gligen_phrases=[phrase for phrase, _ in THINGS],
        gligen_boxes=[list(box) for _, box in THINGS],
        gligen_scheduled_sampling_beta=until,
        generator=torch.Generator().manual_seed(0),
        **settings,
    ).images
    condition = gligen_condition(plain, THINGS, until=until)
    result = pipeline_with(plain, [ours[1]])(
        "two animals",
        cross_attention_kwargs={"gligen": condition},
        generator=torch.Generator().manual_seed(0),
        **settings,
    ).images
    assert torch.equal(result, expected)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([], "no things in boxes"),
        ([("", (0, 0, 1, 1))], "Phrase 0 of 1 is empty"),
        ([("cat", (0, 0, 2, 1))], "that of 'cat' is"),
        ([("x" * 40, (0, 0, 1, 1))], "at most 16 tokens, .* has 42. Shorten it"),
    ],
)
def test_what_cannot_be_encoded_is_said(pipe: Any, wrong: Any, message: str):
    with pytest.raises(ValueError, match=message):
        gligen_condition(pipe, wrong)


def test_phrases_become_pooled_embeddings(pipe: Any):
    condition = gligen_condition(pipe, THINGS)
    assert condition.phrases.shape == (2, WIDTH)
    alone = gligen_condition(pipe, THINGS[1:])  # padded to another length
    torch.testing.assert_close(alone.phrases[0], condition.phrases[1])
