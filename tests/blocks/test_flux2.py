"""The block schedule of FLUX.2 equals its transformer's ``forward`` bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from diffusers import Flux2Transformer2DModel
from peft import LoraConfig
from torch import Tensor

from diffusemble import EnsembleDenoiser
from diffusemble.blocks.flux2 import Flux2Blocks
from tiny_flux2 import TEXT, tiny_flux2
from transformer_cases import ours_for
from unet_inputs import BATCH, TOKENS, randn

GRID = (5, 7)
LENGTH = GRID[0] * GRID[1]


def positions(*axes: int) -> Tensor:
    """Places ``[l 4]`` of so many pictures, rows, columns and words."""
    return torch.cartesian_prod(*(torch.arange(size) for size in axes))


def arguments(dtype: torch.dtype = torch.float32, **given: Any) -> dict[str, Any]:
    """All keyword arguments of ``forward`` for pictures of 5 x 7 tokens."""
    return {
        "hidden_states": randn(BATCH, LENGTH, 16, dtype=dtype),
        "encoder_hidden_states": randn(BATCH, TOKENS, TEXT, seed=1, dtype=dtype),
        "timestep": torch.tensor([0.7, 0.03]),
        "img_ids": positions(1, *GRID, 1),
        "txt_ids": positions(1, 1, 1, TOKENS),
        **given,
    }


def dev() -> Any:
    """A transformer with a guidance embedding."""
    return tiny_flux2(guidance_embeds=True)


def with_lora() -> Any:
    """A transformer with a LoRA whose weights are not zero, on blocks and on what modulates them."""
    model = tiny_flux2()
    torch.manual_seed(9)
    layers = ["to_q", "to_qkv_mlp_proj", "single_stream_modulation.linear"]
    model.add_adapter(LoraConfig(r=3, target_modules=layers, init_lora_weights=False))
    return model


def fused() -> Any:
    """A transformer whose queries, keys and values are one product."""
    model = tiny_flux2()
    model.fuse_qkv_projections()
    return model


MASK = randn(BATCH, 1, TOKENS + LENGTH, TOKENS + LENGTH, seed=60)
CASES: Mapping[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "plain": (tiny_flux2, {}),
    "float64": (tiny_flux2, {"dtype": torch.float64}),
    "bfloat16": (tiny_flux2, {"dtype": torch.bfloat16}),
    "float16": (tiny_flux2, {"dtype": torch.float16}),
    "fused": (fused, {}),
    "ids of every sample": (
        tiny_flux2,
        {"img_ids": positions(1, *GRID, 1).expand(BATCH, -1, -1), "txt_ids": positions(1, 1, 1, 7).expand(2, -1, -1)},
    ),
    "guidance": (dev, {"guidance": torch.tensor([3.5, 1.0])}),
    "mask": (tiny_flux2, {"joint_attention_kwargs": {"attention_mask": MASK}}),
    "lora": (with_lora, {"joint_attention_kwargs": {"scale": 0.6}}),
}
EFFECTS: Mapping[str, dict[str, Any]] = {
    "guidance": {"guidance": torch.tensor([2.0, 2.0])},
    "mask": {},
    "lora": {},
}
"""What the same model is called with otherwise, so that an input without effect shows."""


@pytest.mark.parametrize("name", CASES)
def test_blocks_equal_forward(name: str) -> None:
    build, given = CASES[name]
    model = build().to(given.get("dtype", torch.float32)).eval()
    model.requires_grad_(False)  # as ensembles do: by that alone torch chooses how to add up a layer without a bias
    with torch.no_grad():
        ours = ours_for(model, arguments(**given))
        assert torch.equal(ours, model(**arguments(**given)).sample)
        assert torch.isfinite(ours).all()
        if name in EFFECTS:
            assert (ours - ours_for(model, arguments(**EFFECTS[name]))).abs().max() > 1e-4
        packed = arguments(**given)
        packed["encoder_hidden_states"] = torch.cat([packed["encoder_hidden_states"]] * 2, dim=1)
        assert torch.equal(EnsembleDenoiser([model, model])(**packed).sample, ours)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_gradients_equal_those_of_forward(checkpointing: bool) -> None:
    model = tiny_flux2()
    if checkpointing:
        model.enable_gradient_checkpointing()
    found = []
    for call in (ours_for, lambda model, given: model(**given).sample):
        model.zero_grad()
        given = arguments()
        given["hidden_states"].requires_grad_()
        call(model, given).square().mean().backward()
        modulation = model.single_stream_modulation.linear.weight.grad  # shared by blocks
        found.append((given["hidden_states"].grad, modulation.clone()))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))
    assert all(one.abs().max() > 0 for one in found[0])


def test_names_and_sizes_of_the_real_models() -> None:
    klein = {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680}
    with torch.device("meta"):
        dev, klein = (
            Flux2Blocks(Flux2Transformer2DModel(**config)) for config in ({}, {**klein, "guidance_embeds": False})
        )
    assert (dev.names[0], *dev.names[7:9], dev.names[-1]) == ("double.0", "double.7", "single.0", "single.47")
    assert dev.sizes.channels == (6144,) * 55 + (128,)
    assert (dev.sizes.time, dev.sizes.text, dev.sizes.latents) == (6144, 6144, 128)
    assert klein.sizes.channels == (3072,) * 24 + (128,)
    assert sum(one.numel() for one in klein.denoiser.parameters()) == pytest.approx(3.88e9, rel=1e-2)
    assert sum(one.numel() for one in dev.denoiser.parameters()) == pytest.approx(32.2e9, rel=1e-2)


TWO_PICTURES = torch.cat([positions(1, 2, 7, 1), positions(1, 3, 7, 1) + torch.tensor([10, 0, 0, 0])])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"img_ids": None}, r"FLUX needs img_ids, the place .* of every image token"),
        ({"img_ids": TWO_PICTURES}, r"not the grid of one picture.* pictures beside .* [(]FLUX.2, FLUX Kontext[)]"),
        ({"txt_ids": None}, "FLUX.2 needs txt_ids"),
        ({"guidance": torch.ones(2)}, "no guidance embedding, so it would change nothing"),
        ({"kv_cache_mode": "extract"}, "FLUX.2 block schedule does not support the argument 'kv_cache_mode'"),
        ({"kv_cache": object()}, "does not support the argument 'kv_cache'"),
        ({"num_ref_tokens": 3}, "does not support the argument 'num_ref_tokens'"),
        ({"ref_fixed_timestep": 0.1}, "does not support the argument 'ref_fixed_timestep'"),
        ({"joint_attention_kwargs": {"regions": 1}}, r"kwargs\['regions'\] was given, but no attention"),
    ],
)
def test_what_would_be_ignored_or_break_is_refused_by_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ours_for(tiny_flux2(), arguments(**given))


def test_a_transformer_that_is_told_a_guidance_scale_needs_one() -> None:
    with pytest.raises(ValueError, match="has a guidance embedding: pass guidance"):
        ours_for(dev(), arguments())
