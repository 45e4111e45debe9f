"""The block schedule of Z-Image equals its transformer's ``forward`` bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from diffusers import ZImageTransformer2DModel
from peft import LoraConfig
from torch import Tensor

from diffusemble import EnsembleDenoiser, build_aggregator, pack_text
from diffusemble.blocks.z_image import ZImageBlocks
from tiny import randomised
from tiny_z_image import WIDTH, tiny_z_image
from transformer_cases import ours_for
from unet_inputs import randn

SIZE = (10, 14)  # 35 tokens, filled up to 64


def captions(*lengths: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [randn(length, WIDTH, seed=seed + 50 * place, dtype=dtype) for place, length in enumerate(lengths)]


def arguments(
    dtype: torch.dtype = torch.float32, lengths: Sequence[int] = (7, 4), size: tuple[int, int] = SIZE, **given: Any
) -> dict[str, Any]:
    """All keyword arguments of ``forward`` for two pictures."""
    return {
        "x": list(randn(len(lengths), 4, 1, *size, dtype=dtype)),
        "t": torch.tensor([0.3, 0.97])[: len(lengths)],
        "cap_feats": captions(*lengths, dtype=dtype),
        **given,
    }


def with_lora() -> Any:
    """A transformer with a LoRA whose weights are not zero."""
    model = tiny_z_image()
    torch.manual_seed(9)
    model.add_adapter(LoraConfig(r=3, target_modules=["to_q", "to_v"], init_lora_weights=False))
    return model


def controls(tokens: int = 96) -> dict[int, Tensor]:
    return {index: randn(2, tokens, 24, seed=index + 2) for index in (0, 2)}


CASES: Mapping[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "plain": (tiny_z_image, {}),
    "float64": (tiny_z_image, {"dtype": torch.float64}),
    "bfloat16": (tiny_z_image, {"dtype": torch.bfloat16}),
    "full": (tiny_z_image, {"lengths": (32, 32), "size": (8, 16)}),
    "lengths": (tiny_z_image, {"lengths": (40, 7)}),
    "row": (tiny_z_image, {"lengths": (5,), "size": (2, 12)}),
    "controlnet": (tiny_z_image, {"controlnet_block_samples": controls()}),
    "lora": (with_lora, {"joint_attention_kwargs": {"scale": 0.6}}),
}


@pytest.mark.parametrize("name", CASES)
def test_blocks_equal_forward(name: str) -> None:
    build, given = CASES[name]
    model = build().to(given.get("dtype", torch.float32)).eval()
    with torch.no_grad():
        ours, theirs = ours_for(model, arguments(**given)), model(**arguments(**given)).sample
        assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))
        assert [one.shape for one in ours] == [one.shape for one in arguments(**given)["x"]]
        if name in ("controlnet", "lora"):  # an input without effect would prove nothing
            assert (ours[0] - ours_for(model, arguments())[0]).abs().max() > 1e-4
        packed = arguments(**given)
        packed["cap_feats"] = [pack_text([one, one]) for one in packed["cap_feats"]]
        together = EnsembleDenoiser([model, model])(**packed).sample
        assert all(torch.equal(*pair) for pair in zip(together, ours, strict=True))


def test_gradients_equal_those_of_forward_when_blocks_are_run_again() -> None:
    model = tiny_z_image()
    model.enable_gradient_checkpointing()
    found = []
    for call in (ours_for, lambda model, given: model(**given).sample):
        given = arguments()
        for latents in given["x"]:
            latents.requires_grad_()
        torch.stack(list(call(model, given))).square().mean().backward()
        found.append(torch.stack([latents.grad for latents in given["x"]]))
    assert torch.equal(*found)
    assert found[0].abs().max() > 0


def test_a_picture_does_not_depend_on_those_beside_it() -> None:
    """Nor on how far their captions fill its own up, which the aggregator does not read."""
    denoisers = [tiny_z_image(seed) for seed in range(2)]
    ensemble = EnsembleDenoiser(denoisers, randomised(build_aggregator("sabw", denoisers, preset="tiny"))).eval()
    given = arguments(lengths=(7, 40))
    given["cap_feats"] = [pack_text(pair) for pair in zip(captions(7, 40), captions(7, 40, seed=2), strict=True)]
    with torch.no_grad():
        together = ensemble(**given).sample
        alone = ensemble(**{name: value[:1] for name, value in given.items()}).sample
    assert torch.allclose(together[0], alone[0], atol=1e-5)


def test_the_aggregator_is_told_the_time_of_the_sampler() -> None:
    """Where 1000 is noise; the transformer's 0 is."""
    heard = []
    ensemble = EnsembleDenoiser([tiny_z_image()])
    ensemble.aggregator.register_forward_pre_hook(lambda _, given: heard.append(given[2].timestep))
    with torch.no_grad():
        ensemble(**arguments())
    assert torch.allclose(heard[0], torch.tensor([700.0, 30.0]))


def test_names_and_sizes_of_the_real_model() -> None:
    with torch.device("meta"):
        blocks = ZImageBlocks(ZImageTransformer2DModel())
    assert (blocks.names[0], blocks.names[-1]) == ("single.0", "single.29")
    assert blocks.sizes.channels == (3840,) * 29 + (16,)
    assert (blocks.sizes.time, blocks.sizes.text, blocks.sizes.latents) == (256, 3840, 16)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"x": [[randn(4, 1, 4, 4)]]}, "x must be a list of latents .* got list. Draw .* are not supported"),
        ({"x": [randn(4, 1, 4, 4), randn(4, 1, 4, 6)]}, "of one size with even sides.* sizes one after the other"),
        ({"x": [randn(4, 2, 4, 4)]}, r"got \(4, 2, 4, 4\)"),
        ({"x": [randn(4, 1, 5, 4)]}, r"got \(4, 1, 5, 4\)"),
        ({"x": []}, "got none"),
        ({"cap_feats": None}, "Z-Image needs cap_feats"),
        ({"joint_attention_kwargs": {"regions": 1}}, "joint_attention_kwargs.* was given, but no attention"),
        ({"controlnet_block_samples": controls(95)}, r"shape \(2, 95, 24\) for layer 0, .* 96 tokens of width 24"),
        ({"controlnet_block_samples": {3: randn(2, 96, 24)}}, "for layer 3, but .* has the layers 0 to 2"),
    ],
)
def test_what_would_be_ignored_or_break_is_refused_by_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ours_for(tiny_z_image(), arguments(**given))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (captions(7, 4), "cap_feats has shape .7, 16., but for 2 experts its last axis must be 32. Pass one"),
        ([captions(7)] * 2, "cap_feats must be a list with one tensor .s d. for each picture; got list. Lists of"),
        ([randn(1, 7, 32)] * 2, r"for each picture; got \(1, 7, 32\)"),
    ],
)
def test_captions_that_are_not_packed_are_refused(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EnsembleDenoiser([tiny_z_image(seed) for seed in range(2)])(**arguments(cap_feats=given))


@pytest.mark.parametrize("name", ["siglip_feats", "image_noise_mask", "patch_size", "f_patch_size"])
def test_what_is_not_supported_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"does not support the argument '{name}'"):
        ours_for(tiny_z_image(), arguments(**{name: 2}))


@pytest.mark.parametrize("config", [{"siglip_feat_dim": 8}, {"all_patch_size": (4,)}])
def test_transformers_for_editing_and_of_other_patches_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"reads several, or in others .* Use experts of Z-Image or Z-Image-Turbo"):
        ZImageBlocks(tiny_z_image(**config))
