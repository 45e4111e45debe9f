"""Pictures drawn by a plan are those drawn with everything in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.utils.torch_utils import get_module_execution_device
from PIL import Image
from torch import nn

from diffusemble import EnsembleDenoiser
from diffusemble.config.generate import GenerateConfig
from diffusemble.config.memory import MemoryConfig
from diffusemble.generation import generate
from diffusemble.memory.keep import Drawing, choose_plan
from diffusemble.memory.measure import decoding_type, measure_weights
from diffusemble.memory.networks import networks_of
from diffusemble.memory.place import Placement
from diffusemble.memory.plan import Working, make_plan
from diffusemble.memory.visitors import layer_by_layer, own_weights
from memory_cases import small_sdxl_unet
from stock import small_pipeline, small_unet
from tiny import as_expert, tiny_sdxl_pipeline, tiny_text_encoder, tiny_vae
from tiny_dit import tiny_flux_pipeline, tiny_sd3_pipeline, tiny_t5
from tiny_flux2 import tiny_flux2_pipeline
from tiny_qwen import tiny_qwen_pipeline


def small_sdxl_pipeline(seed: int = 0, **parts: Any) -> Any:
    """With as few layers as SDXL's three levels can have."""
    return tiny_sdxl_pipeline(seed, unet=small_sdxl_unet(seed), **parts)


PIPELINES: dict[str, Callable[..., Any]] = {
    "sd": small_pipeline,
    "sdxl": small_sdxl_pipeline,
    "flux": tiny_flux_pipeline,
    "flux2": tiny_flux2_pipeline,
    "sd3": tiny_sd3_pipeline,
}


def an_ensemble(family: str) -> EnsembleDenoiser:
    experts = [as_expert(PIPELINES[family](seed), f"expert {seed}") for seed in range(2)]
    return EnsembleDenoiser(experts).eval()


def drawn(ensemble: EnsembleDenoiser) -> np.ndarray:
    """Two pictures, ``[2 16 16 3]``."""
    pipeline = ensemble.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    seeds = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    extra = {"max_sequence_length": 16} if "max_sequence_length" in pipeline.__call__.__annotations__ else {}
    images: np.ndarray = pipeline(
        prompt=["a fox", "two"], generator=seeds, num_inference_steps=2, height=16, width=16, output_type="np", **extra
    ).images
    return images


@pytest.mark.parametrize(
    ("family", "parts"),
    [("sd", "layers"), ("flux", "layers"), ("flux2", "layers"), ("sd3", "visit")],  # SDXL: test_two_stages_take_turns
)
def test_every_family_draws_the_same_bits(family: str, parts: str) -> None:
    ensemble = an_ensemble(family)
    expected = drawn(ensemble)
    choice = MemoryConfig.model_validate({"resident": 0.6, "parts": parts})
    plan = make_plan(measure_weights(networks_of(ensemble)), Working(), choice)
    stages: list[int | None] = []
    with Placement(ensemble, plan, "cpu") as placed:
        (vae,) = networks_of(ensemble).vaes
        ensemble.register_forward_hook(lambda *_: stages.append(placed.visitors.inside))
        assert np.array_equal(drawn(ensemble), expected)
        assert placed.residence.peak <= plan.weights
        assert placed.visitors.bytes == sum(weight.nbytes for weight in (*vae.parameters(), *vae.buffers()))
    assert stages
    assert set(stages) == {None}  # text encoders have left before the first step, the VAE comes after the last
    assert np.array_equal(drawn(ensemble), expected)


@pytest.mark.parametrize("parts", ["visit", "layers"])
def test_pipelines_find_visitors_where_they_will_compute(parts: str) -> None:
    """Pipelines of SDXL and FLUX ask before they call; where a visitor rests says nothing."""
    ensemble = an_ensemble("sd")
    plan = make_plan(measure_weights(networks_of(ensemble)), Working(), MemoryConfig.model_validate({"parts": parts}))
    visitors = [ensemble.experts[0].components[name] for name in ("text_encoder", "vae")]
    before = [dict(vars(one)) for one in visitors]
    elsewhere = torch.device("cpu:0")
    with Placement(ensemble, plan, elsewhere):
        assert [get_module_execution_device(one) for one in visitors] == [elsewhere] * 2
        assert ensemble.pipeline()._execution_device == elsewhere
    assert [vars(one).keys() for one in visitors] == [own.keys() for own in before]


@pytest.mark.parametrize(("how", "close"), [("pictures", 1e-5), ("tiles", 0.2)])
def test_a_plan_sets_how_the_vae_decodes_and_sets_it_back(how: str, close: float) -> None:
    ensemble = an_ensemble("sd")
    expected, vae = drawn(ensemble), ensemble.experts[0].components["vae"]
    before = dict(vars(vae))
    plan = make_plan(measure_weights(networks_of(ensemble)), Working(), MemoryConfig.model_validate({"vae": how}))
    assert not plan.exact
    with Placement(ensemble, plan, "cpu"):
        assert (vae.use_slicing, vae.use_tiling) == (True, how == "tiles")
        assert np.allclose(drawn(ensemble), expected, atol=close)
    assert {key: value for key, value in vars(vae).items() if key in before and key.startswith(("use", "tile"))} == {
        key: value for key, value in before.items() if key.startswith(("use", "tile"))
    }


def test_a_vae_that_was_widened_meanwhile_leaves_as_it_is() -> None:
    """Pipelines turn SDXL's VAE to float32 while it decodes, and back."""
    vae = tiny_vae().half()
    ensemble = EnsembleDenoiser([as_expert(small_pipeline(vae=vae))]).eval()
    before = [weight.clone() for weight in vae.parameters()]
    plan = make_plan(measure_weights(networks_of(ensemble)), Working(), MemoryConfig(parts="visit", resident=0))
    with Placement(ensemble, plan, "cpu") as placed:
        vae.decoder(torch.zeros(1, 4, 2, 2).half())
        nn.Module.float(vae)
        placed.visitors.leave()
        assert vae.decoder(torch.zeros(1, 4, 2, 2)).dtype == torch.float32
        nn.Module.half(vae)
    assert placed.visitors.bytes == 0
    assert all(torch.equal(one, other) for one, other in zip(vae.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("family", "dtype", "expected"),
    [
        ("sdxl", torch.float16, torch.float32),
        ("sdxl", torch.bfloat16, torch.bfloat16),
        ("sd", torch.float16, torch.float16),  # this pipeline widens nothing, whatever the VAE says
    ],
)
def test_the_vae_is_reckoned_in_the_type_that_its_pipeline_decodes_in(
    family: str, dtype: torch.dtype, expected: torch.dtype
) -> None:
    vae = nn.Module.to(tiny_vae(force_upcast=True), dtype)
    ensemble = EnsembleDenoiser([as_expert(PIPELINES[family](0, vae=vae))])
    assert decoding_type(ensemble, vae) == expected
    numbers = sum(weight.numel() for weight in vae.parameters())
    assert measure_weights(networks_of(ensemble)).vaes == (numbers * expected.itemsize,)


def test_a_budget_counts_the_films_of_qwen_image() -> None:
    ensemble = EnsembleDenoiser([as_expert(tiny_qwen_pipeline(seed), f"expert {seed}") for seed in range(2)])
    small, large = (choose_plan(ensemble, "1GB", Drawing(side, side, batch=2)) for side in (16, 32))
    assert small.vae == "whole"
    assert small.encode.working > 0  # the width of an encoder that also sees stands in its text's configuration
    assert large.decode.working > 3 * small.decode.working


def test_a_budget_counts_every_layer_of_a_language_model_but_no_longer_prompts_than_there_are() -> None:
    long = tiny_flux2_pipeline()
    long.text_encoder.config.max_position_embeddings = 40960
    plan = choose_plan(EnsembleDenoiser([as_expert(long)]), "1GB", Drawing(16, 16))
    assert plan.encode.working == 512 * 8 * (8 + 27) * 4  # tokens, width, layers with what else there is, bytes


def test_layers_cover_an_encoder() -> None:
    for encoder in (tiny_text_encoder(), tiny_t5()):
        groups = layer_by_layer(encoder)
        weights = [id(weight) for group in groups for weight in own_weights(group)]
        assert len(groups) == 1 + encoder.config.num_hidden_layers
        assert sorted(weights) == sorted({id(one) for one in (*encoder.parameters(), *encoder.buffers())})


def test_equal_text_encoders_are_counted_and_placed_once() -> None:
    shared = tiny_text_encoder()
    experts = [as_expert(small_pipeline(seed, text_encoder=shared), f"expert {seed}") for seed in range(2)]
    ensemble = EnsembleDenoiser(experts)
    assert networks_of(ensemble).encoders == (shared,)
    assert len(measure_weights(networks_of(ensemble)).encoders) == 1


def test_every_way_of_a_comparison_has_its_vae_and_encoders_placed() -> None:
    """An expert alone is decoded by its own VAE, not by the first expert's."""
    experts = [as_expert(small_pipeline(seed, vae=tiny_vae(seed)), f"expert {seed}") for seed in range(2)]
    ensemble = EnsembleDenoiser(experts)
    pipelines = [EnsembleDenoiser([expert]).pipeline() for expert in experts]
    networks = networks_of(ensemble, [*pipelines, ensemble.pipeline()])
    assert networks.vaes == tuple(expert.components["vae"] for expert in experts)
    assert networks.encoders == tuple(expert.components["text_encoder"] for expert in experts)
    plan = make_plan(measure_weights(networks), Working(), MemoryConfig(parts="visit"))
    with Placement(ensemble, plan, "cpu", pipelines) as placed:
        for vae in networks.vaes:
            vae.decode(torch.zeros(1, 4, 2, 2))
            assert placed.visitors.bytes == sum(weight.nbytes for weight in (*vae.parameters(), *vae.buffers()))


def test_attention_in_slices_comes_close_and_goes_again() -> None:
    ensemble = an_ensemble("sd")
    expected = drawn(ensemble)
    plan = make_plan(measure_weights(networks_of(ensemble)), Working(), MemoryConfig(attention_slicing=True))
    assert not plan.exact
    with Placement(ensemble, plan, "cpu"):
        kinds = {type(one).__name__ for one in ensemble.denoisers[0].attn_processors.values()}
        assert kinds == {"SlicedAttnProcessor"}
        assert np.allclose(drawn(ensemble), expected, atol=1e-4)
    assert np.array_equal(drawn(ensemble), expected)


def test_a_transformer_has_no_sliced_attention() -> None:
    ensemble = an_ensemble("flux")
    plan = make_plan(measure_weights(networks_of(ensemble)), Working(), MemoryConfig(attention_slicing=True))
    with pytest.raises(ValueError, match="a FluxTransformer2DModel has no sliced attention"):
        Placement(ensemble, plan, "cpu")


def test_an_adapter_keeps_its_attention() -> None:
    ensemble = EnsembleDenoiser([small_unet()])
    denoiser = ensemble.denoisers[0]
    plan = make_plan(measure_weights(networks_of(ensemble)), Working(), MemoryConfig(attention_slicing=True))
    denoiser.set_attn_processor({name: Adapted() for name in denoiser.attn_processors})
    with pytest.raises(ValueError, match="replaces the attention of Adapted, which an adapter brought"):
        Placement(ensemble, plan, "cpu")


class Adapted:
    """A processor of somebody else."""


def test_a_budget_draws_the_same_pictures_and_keeps_to_it(trained_pair: tuple[str, ...], tmp_path: Path) -> None:
    config = GenerateConfig(prompts=("a cat", "a dog"), experts=trained_pair, steps=1, device="cpu")
    free = generate(config)
    assert free.memory is None
    least = choose_plan(an_ensemble("sd"), None, Drawing(batch=2), MemoryConfig(resident=0, parts="visit"))
    tight = generate(config.model_copy(update={"memory_budget": f"{least.peak / 1000 + 1:.0f}kB"}))
    assert tight.memory is not None
    assert tight.memory.plan.resident == 0
    assert tight.memory.budget is not None
    assert tight.memory.weights <= tight.memory.plan.weights <= tight.memory.budget
    for one, other in zip(free.pictures, tight.pictures, strict=True):
        assert one.image.tobytes() == other.image.tobytes()
    with Image.open(tight.save(tmp_path).pictures[0]) as saved:
        assert saved.size == (16, 16)


@pytest.fixture(scope="module")
def trained_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Two experts as diffusers folders."""
    root = tmp_path_factory.mktemp("experts")
    for seed, name in enumerate(("rock", "fern")):
        small_pipeline(seed).save_pretrained(root / name)
    return str(root / "rock"), str(root / "fern")


def test_quantised_experts_are_refused_by_name() -> None:
    ensemble = EnsembleDenoiser([small_unet()])
    layer = ensemble.denoisers[0].mid_block.resnets[0].conv1
    layer.weight = nn.Parameter(layer.weight.data.as_subclass(Quantised), requires_grad=False)
    with pytest.raises(
        ValueError, match=r"mid_block\.resnets\.0\.conv1\.weight of a UNet2DConditionModel is quantised"
    ):
        choose_plan(ensemble, "8GB")


class Quantised(torch.Tensor):
    """What quantisers make of a weight."""
