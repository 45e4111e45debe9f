"""The block schedule of Qwen-Image equals its transformer's ``forward`` bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from peft import LoraConfig

from diffusemble import EnsembleDenoiser, build_aggregator, pack_text
from diffusemble.blocks.qwen import QwenBlocks
from tiny import randomised
from tiny_qwen import WIDTH, tiny_qwen
from transformer_cases import ours_for
from unet_inputs import BATCH, TOKENS, randn


def arguments(dtype: torch.dtype = torch.float32, **given: Any) -> dict[str, Any]:
    """All keyword arguments of ``forward`` for pictures of 5 x 7 tokens."""
    return {
        "hidden_states": randn(BATCH, 35, 16, dtype=dtype),
        "encoder_hidden_states": randn(BATCH, TOKENS, WIDTH, seed=1, dtype=dtype),
        "timestep": torch.tensor([0.7, 0.03]),
        "img_shapes": [[(1, 5, 7)]] * BATCH,
        **given,
    }


def mask() -> torch.Tensor:
    """The second prompt is shorter."""
    mask = torch.ones(BATCH, TOKENS, dtype=torch.long)
    mask[1, 4:] = 0
    return mask


def with_lora() -> Any:
    """A transformer with a LoRA whose weights are not zero."""
    model = tiny_qwen()
    torch.manual_seed(9)
    model.add_adapter(LoraConfig(r=3, target_modules=["to_q", "to_v"], init_lora_weights=False))
    return model


CASES: Mapping[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "plain": (tiny_qwen, {}),
    "float64": (tiny_qwen, {"dtype": torch.float64}),
    "bfloat16": (tiny_qwen, {"dtype": torch.bfloat16}),
    "mask": (tiny_qwen, {"encoder_hidden_states_mask": mask()}),
    "controlnet": (tiny_qwen, {"controlnet_block_samples": [randn(BATCH, 35, 24, seed=i) for i in (2, 3)]}),
    "lora": (with_lora, {"attention_kwargs": {"scale": 0.6}}),
}


@pytest.mark.parametrize("name", CASES)
def test_blocks_equal_forward(name: str) -> None:
    build, given = CASES[name]
    model = build().to(given.get("dtype", torch.float32)).eval()
    with torch.no_grad():
        ours = ours_for(model, arguments(**given))
        assert torch.equal(ours, model(**arguments(**given)).sample)
        if "dtype" not in given and given:  # an input without effect would prove nothing
            assert (ours - ours_for(model, arguments())).abs().max() > 1e-4
        packed = arguments(**given)
        packed["encoder_hidden_states"] = torch.cat([packed["encoder_hidden_states"]] * 2, dim=1)
        assert torch.equal(EnsembleDenoiser([model, model])(**packed).sample, ours)


def test_gradients_equal_those_of_forward_when_blocks_are_run_again() -> None:
    model = tiny_qwen()
    model.enable_gradient_checkpointing()
    found = []
    for call in (ours_for, lambda model, given: model(**given).sample):
        given = arguments()
        given["hidden_states"].requires_grad_()
        call(model, given).square().mean().backward()
        found.append(given["hidden_states"].grad)
    assert torch.equal(*found)
    assert found[0].abs().max() > 0


def test_what_fills_a_prompt_up_changes_nothing() -> None:
    """The aggregator does not read it either."""
    denoisers = [tiny_qwen(seed) for seed in range(2)]
    ensemble = EnsembleDenoiser(denoisers, randomised(build_aggregator("sabw", denoisers, preset="tiny"))).eval()
    texts = [randn(BATCH, TOKENS, WIDTH, seed=seed) for seed in (1, 2)]
    fill = randn(BATCH, 3, WIDTH, seed=3)
    real = torch.cat([torch.ones(BATCH, TOKENS), torch.zeros(BATCH, 3)], dim=1).long()
    with torch.no_grad():
        plain = ensemble(**arguments(encoder_hidden_states=pack_text(texts))).sample
        filled = pack_text([torch.cat([text, fill], dim=1) for text in texts])
        found = ensemble(**arguments(encoder_hidden_states=filled, encoder_hidden_states_mask=real)).sample
    assert torch.allclose(found, plain, atol=1e-5)


def test_a_packed_mask_is_cut_and_a_shared_one_is_not() -> None:
    blocks, text = QwenBlocks(tiny_qwen()), torch.zeros(BATCH, 2 * TOKENS, WIDTH)
    inputs = {"encoder_hidden_states": text, "img_shapes": [[(1, 5, 7)]], "encoder_hidden_states_mask": mask()}
    assert all(
        own["encoder_hidden_states_mask"] is inputs["encoder_hidden_states_mask"] for own in blocks.split(inputs, 2)
    )
    inputs["encoder_hidden_states_mask"] = torch.cat([torch.ones(BATCH, TOKENS, dtype=torch.long), mask()], dim=1)
    first, second = blocks.split(inputs, 2)
    assert first["encoder_hidden_states_mask"].all()
    assert torch.equal(second["encoder_hidden_states_mask"], mask())


def test_names_and_sizes_of_the_real_model() -> None:
    with torch.device("meta"):
        blocks = QwenBlocks(QwenImageTransformer2DModel())
    assert (blocks.names[0], blocks.names[-1]) == ("joint.0", "joint.59")
    assert blocks.sizes.channels == (3072,) * 59 + (64,)
    assert (blocks.sizes.time, blocks.sizes.text, blocks.sizes.latents) == (3072, 3072, 64)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"img_shapes": None},
            r"img_shapes is .*, but .* one picture, here of 35 tokens: give \[\[\(1, height, width\)\]\]",
        ),
        ({"img_shapes": [[(1, 5, 7), (1, 5, 7)]]}, "Pictures beside it .editing. are not supported"),
        ({"encoder_hidden_states": None}, "Qwen-Image needs encoder_hidden_states"),
        ({"guidance": torch.ones(2)}, "does not support the argument 'guidance'"),
        ({"attention_kwargs": {"regions": 1}}, r"attention_kwargs\['regions'\] was given, but no attention"),
        ({"attention_kwargs": {"attention_mask": torch.ones(2, 1, 42, 42)}}, r"\['attention_mask'\] was given, but no"),
        ({"controlnet_block_samples": [randn(2, 36, 24)]}, "controlnet_block_samples has a tensor of shape"),
    ],
)
def test_what_would_be_ignored_or_break_is_refused_by_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ours_for(tiny_qwen(), arguments(**given))


def test_transformers_for_editing_are_refused() -> None:
    with pytest.raises(ValueError, match=r"reads several [(]zero_cond_t[)]. Use experts of Qwen-Image itself"):
        QwenBlocks(tiny_qwen(zero_cond_t=True))
