from __future__ import annotations

import pytest
import torch

from diffusemble.experts.expert import Expert
from diffusemble.merging.blockwise import parse_weights, slots
from diffusemble.merging.merged_expert import MergedExpert
from tests.merging.test_blend import weights
from tests.tiny import as_expert, tiny_pipeline, tiny_sdxl_pipeline, tiny_vae
from tests.tiny_dit import tiny_flux_pipeline, tiny_sd3


def one_hot(expert: int, count: int = 2, family: str = "sd1") -> list[dict[str, float]]:
    return [dict.fromkeys(slots(family), float(number == expert)) for number in range(count)]


def picture(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    size = {"height": 16, "width": 16, "num_inference_steps": 2, "output_type": "pt"}
    return pipeline("a fox", generator=torch.Generator().manual_seed(3), **size).images


def test_a_merge_with_all_of_one_expert_draws_what_it_draws_alone():
    pipelines = [tiny_pipeline(seed) for seed in range(2)]
    merged = MergedExpert([as_expert(pipeline, str(n)) for n, pipeline in enumerate(pipelines)])
    for number, pipeline in enumerate(pipelines):
        merged.set(one_hot(number))
        assert torch.equal(picture(merged.pipeline()), picture(pipeline))


def test_changing_slots_one_by_one_ends_where_merging_once_ends():
    experts = [as_expert(tiny_pipeline(seed), str(seed)) for seed in range(3)]
    merged = MergedExpert(experts)
    for seed in range(3):
        own = [weights(10 * seed + number) for number in range(3)]
        merged.set(own)
        partly = [{**one, "M00": 0.5, "OUT03": float(number + 1)} for number, one in enumerate(own)]
        merged.set(partly)
    whole = MergedExpert(experts, partly)
    parts = [(merged.expert.denoiser, whole.expert.denoiser)]
    parts += [(merged.expert.components[name], whole.expert.components[name]) for name in ("text_encoder",)]
    for one, other in parts:
        assert all(
            torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
        )


def test_the_experts_stay_as_they_are_and_shared_parts_are_shared():
    experts = [as_expert(tiny_pipeline(seed), str(seed)) for seed in range(2)]
    experts[1].components["text_encoder"] = experts[0].components["text_encoder"]
    experts[1].components["vae"] = experts[0].components["vae"]
    before = {key: tensor.clone() for key, tensor in experts[0].denoiser.state_dict().items()}
    merged = MergedExpert(experts)
    merged.set(one_hot(1))
    assert all(torch.equal(tensor, before[key]) for key, tensor in experts[0].denoiser.state_dict().items())
    assert merged.expert.components["text_encoder"] is experts[0].components["text_encoder"]
    assert merged.expert.components["vae"] is experts[0].components["vae"]
    assert merged.differing() == slots("sd1")[1:]


def test_everything_that_differs_outside_the_denoiser_is_base():
    experts = [as_expert(tiny_pipeline(seed, vae=tiny_vae(seed)), str(seed)) for seed in range(2)]
    merged = MergedExpert(experts)
    merged.set([{**parse_weights("ALL_A", "sd1"), "M00": 1.0} | dict.fromkeys(slots("sd1")[1:], 1.0), one_hot(1)[1]])
    assert "BASE" in merged.differing()
    for part in ("text_encoder", "vae"):
        mine, second = merged.expert.components[part].state_dict(), experts[1].components[part].state_dict()
        assert all(torch.equal(tensor, second[key]) for key, tensor in mine.items())


@pytest.mark.parametrize(("family", "make"), [("sdxl", tiny_sdxl_pipeline), ("flux", tiny_flux_pipeline)])
def test_both_text_encoders_are_merged(family, make):
    pipelines = [make(seed) for seed in range(2)]
    merged = MergedExpert([as_expert(pipeline, str(n)) for n, pipeline in enumerate(pipelines)])
    assert merged.family == family
    merged.set(one_hot(1, family=family))
    assert torch.equal(picture(merged.pipeline()), picture(pipelines[1]))


def test_experts_without_slots_are_refused():
    with pytest.raises(ValueError, match=r"this is SD 3\.5, whose blocks have no slots"):
        MergedExpert([Expert("a", tiny_sd3(0)), Expert("b", tiny_sd3(1))])


def test_experts_of_two_architectures_are_refused():
    experts = [as_expert(tiny_pipeline(), "a"), as_expert(tiny_sdxl_pipeline(), "b")]
    with pytest.raises(ValueError, match=r"Expert 2 \('b'\): family is 'SDXL'"):
        MergedExpert(experts)
