"""What users switch on a pipeline reaches every expert, or says why it cannot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionSAGPipeline
from diffusers.hooks import (
    PyramidAttentionBroadcastConfig,
    apply_pyramid_attention_broadcast,
)
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

from stock import small_pipeline
from tiny_ensembles import ATOL, SMALL, different, draw, unlike

CPU = torch.device("cpu")
THREE = {**SMALL, "num_inference_steps": 3}


class Blurred(AttnProcessor):
    """Attention whose output is halved: nobody can take it for the usual one."""

    def __call__(self, attn: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        output: torch.Tensor = super().__call__(attn, *args, **kwargs)
        return 0.5 * output


def blur(pipeline: Any) -> None:
    pipeline.unet.set_attn_processor(Blurred())


def blur_by_name(pipeline: Any) -> None:
    names = pipeline.unet.attn_processors
    pipeline.unet.set_attn_processor({name: Blurred() if "attn2" in name else AttnProcessor2_0() for name in names})


def fuse(pipeline: Any) -> None:
    pipeline.fuse_qkv_projections()


def group_offload(pipeline: Any) -> None:
    pipeline.unet.enable_group_offload(CPU, offload_device=CPU, offload_type="leaf_level")


def merge_tokens(pipeline: Any) -> None:
    """As tomesd does: find transformer blocks among the modules, and learn the size from the denoiser's call."""
    sizes: list[int] = []
    pipeline.unet.register_forward_pre_hook(lambda module, args: sizes.append(args[0].shape[-1]))
    for module in pipeline.unet.modules():
        if isinstance(module, BasicTransformerBlock):
            module.register_forward_hook(lambda module, args, output: output * (1 - 0.02 * sizes[-1]))


def broadcast(pipeline: Any) -> None:
    """Attention outputs of one step are used again in the next one."""
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 1001),
        spatial_attention_block_identifiers=("transformer_blocks",),
        current_timestep_callback=lambda: 500,
    )
    apply_pyramid_attention_broadcast(pipeline.unet, config)


SAME: dict[str, Callable[[Any], Any]] = {
    "sliced attention": lambda pipeline: pipeline.enable_attention_slicing(1),
    "plain processors": lambda pipeline: pipeline.unet.set_default_attn_processor(),
    "fused projections": fuse,
    "model offload": lambda pipeline: pipeline.enable_model_cpu_offload(device="cpu"),
    "group offload": group_offload,
}
"""Switches that change how a picture is computed, and not the picture."""

CHANGING: dict[str, Callable[[Any], Any]] = {
    "FreeU": lambda pipeline: pipeline.enable_freeu(s1=0.6, s2=0.4, b1=1.4, b2=1.6),
    "a processor": blur,
    "processors by name": blur_by_name,
    "merged tokens": merge_tokens,
    "broadcast attention": broadcast,
    "float8 storage": lambda pipeline: pipeline.unet.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32),
}


def two(seeds: tuple[int, int] = (0, 0)) -> Any:
    return different([small_pipeline(seed) for seed in seeds]).pipeline()


@pytest.mark.parametrize("name", SAME)
def test_a_switch_that_changes_nothing_changes_nothing(name: str) -> None:
    pipeline = two((0, 1))
    before = draw(pipeline, **SMALL)
    SAME[name](pipeline)
    np.testing.assert_allclose(draw(pipeline, **SMALL), before, atol=ATOL)


@pytest.mark.parametrize("name", CHANGING)
def test_a_switch_changes_two_equal_experts_as_it_changes_one(name: str) -> None:
    alone, together = small_pipeline(0), two()
    plain = draw(alone, **THREE)
    CHANGING[name](alone)
    CHANGING[name](together)
    expected = draw(alone, **THREE)
    np.testing.assert_allclose(draw(together, **THREE), expected, atol=ATOL)
    assert unlike(expected, plain, 1e-4)


def test_processors_have_names_that_begin_and_end_as_one_experts_do() -> None:
    whole = [small_pipeline(seed) for seed in range(2)]
    ensemble = different(whole)
    alone, names = list(whole[0].unet.attn_processors), list(ensemble.attn_processors)
    assert names[: len(alone)] == alone
    assert len(names) == 2 * len(alone)
    for name, second in zip(alone, names[len(alone) :], strict=True):
        assert second.replace("expert_2.", "") == name
        assert second.split(".")[0] == name.split(".")[0]
        assert second.endswith((".expert_2.attn1.processor", ".expert_2.attn2.processor"))
    chosen = {name: AttnProcessor() for name in names}
    ensemble.set_attn_processor(chosen)
    assert ensemble.attn_processors == chosen


def test_processors_with_other_names_are_refused() -> None:
    ensemble = two().unet
    names = ensemble.attn_processors
    with pytest.raises(
        ValueError, match=r"got 3 names, where these do not match: mid, nose.*ensemble\.attn_processors"
    ):
        ensemble.set_attn_processor({"nose": AttnProcessor(), "mid": AttnProcessor(), next(iter(names)): None})
    with pytest.raises(ValueError, match="these do not match: down_blocks"):
        ensemble.set_attn_processor({})


@pytest.mark.slow
def test_compiled_blocks_draw_the_same() -> None:
    pipeline = two((0, 1))
    before = draw(pipeline, **SMALL)
    pipeline.unet.compile_repeated_blocks(backend="eager")
    np.testing.assert_allclose(draw(pipeline, **SMALL), before, atol=ATOL)


def test_half_precision_and_back() -> None:
    pipeline = two((0, 1)).to("cpu", torch.bfloat16)
    assert {weight.dtype for weight in pipeline.unet.parameters()} == {torch.bfloat16}
    assert np.isfinite(draw(pipeline, **SMALL)).all()
    assert pipeline.to(torch.float32).unet.dtype == torch.float32


def test_every_module_that_owns_weights_is_called() -> None:
    """What sequential offloading and layer-wise casting need: their hooks wait for the call of such a module."""
    pipeline, waiting = two((0, 1)), set()
    for name, module in pipeline.unet.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            waiting.add(name)
            module.register_forward_pre_hook(lambda module, args, name=name: waiting.discard(name))
    assert len(waiting) > 100
    draw(pipeline, **SMALL)
    assert not waiting


def test_gradient_checkpointing_is_switched_on_every_expert() -> None:
    ensemble = two((0, 1)).unet
    ensemble.enable_gradient_checkpointing()
    assert all(denoiser.is_gradient_checkpointing for denoiser in ensemble.denoisers)
    ensemble.disable_gradient_checkpointing()
    assert not ensemble.is_gradient_checkpointing


def test_xformers_are_asked_of_every_attention() -> None:
    with pytest.raises(ModuleNotFoundError, match="xformers"):
        two().enable_xformers_memory_efficient_attention()


def test_group_offloading_by_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match=r'calls the layers inside\. Use offload_type="leaf_level"'):
        two().unet.enable_group_offload(CPU)


REFUSED = [
    "down_blocks",
    "mid_block",
    "up_blocks",
    "load_attn_procs",
    "add_adapter",
    "save_lora_adapter",
    "get_aug_embed",
]


def test_what_belongs_to_one_model_is_refused_with_the_way_that_works() -> None:
    ensemble = two().unet
    for name in REFUSED:
        way = rf"An ensemble has no '{name}': .* `for denoiser in ensemble\.denoisers: denoiser\.{name}`"
        with pytest.raises(AttributeError, match=way):
            getattr(ensemble, name)
        assert not hasattr(ensemble, name)
    with pytest.raises(AttributeError, match="object has no attribute 'nonsense'"):
        ensemble.nonsense


def test_a_pipeline_that_reads_inside_one_denoiser_is_refused() -> None:
    ensemble = different([small_pipeline(0)])
    pipeline = ensemble.pipeline(StableDiffusionSAGPipeline)
    with pytest.raises(AttributeError, match=r"An ensemble has no 'mid_block': what reads or patches whole blocks"):
        draw(pipeline, sag_scale=0.5, **SMALL)
