from __future__ import annotations

import pytest
import torch

from diffusemble.merging.blend import differing_slots, merge_blocks
from diffusemble.merging.blockwise import complement, parse_weights, slot_of, slots
from diffusemble.merging.methods import weighted_average
from tests import ldm
from tests.tiny import tiny_sdxl_unet, tiny_unet

MODELS = [tiny_unet(seed).state_dict() for seed in range(3)]


def weights(seed: int, family: str = "sd1") -> dict[str, float]:
    generator = torch.Generator().manual_seed(seed)
    return dict(zip(slots(family), torch.rand(len(slots(family)), generator=generator).tolist(), strict=True))


def test_equal_weights_are_the_weighted_average():
    merged = merge_blocks(MODELS, [parse_weights("FLAT_50", "sd1")] * 3, "sd1")
    for key, tensor in weighted_average(MODELS).items():
        torch.testing.assert_close(merged[key], tensor)
    assert list(merged.keys() ^ MODELS[0].keys()) == []


def test_every_tensor_is_mixed_by_the_ratios_of_its_slot():
    own = [weights(seed) for seed in range(3)]
    for key, tensor in merge_blocks(MODELS, own, "sd1").items():
        shares = torch.tensor([one[slot_of(key, "sd1")] for one in own], dtype=torch.float64)
        stacked = torch.stack([model[key].double() for model in MODELS], dim=-1)
        torch.testing.assert_close(tensor, (stacked @ (shares / shares.sum())).float())


def test_a_slot_that_takes_all_of_one_expert_is_that_expert_bit_for_bit():
    second = parse_weights("IN12", "sdxl")
    models = [tiny_sdxl_unet(seed).state_dict() for seed in range(2)]
    for key, tensor in merge_blocks(models, [complement(second), second], "sdxl").items():
        assert torch.equal(tensor, models[1 if slot_of(key, "sdxl").startswith("IN") else 0][key])


def test_files_of_both_layouts_merge_alike():
    unets = [tiny_unet(seed) for seed in range(2)]
    own = [weights(5), weights(6)]
    merged = merge_blocks([unet.state_dict() for unet in unets], own, "sd1")
    original = merge_blocks([ldm.unet(unet) for unet in unets], own, "sd1")
    by_name = dict(zip(ldm.unet(unets[0]), unets[0].state_dict(), strict=True))
    assert all(torch.equal(tensor, merged[by_name[key]]) for key, tensor in original.items())


def test_only_some_slots():
    own = [weights(1), weights(2), weights(3)]
    whole, part = merge_blocks(MODELS, own, "sd1"), merge_blocks(MODELS, own, "sd1", {"M00", "OUT03"})
    assert {slot_of(key, "sd1") for key in part} == {"M00", "OUT03"}
    assert all(torch.equal(tensor, whole[key]) for key, tensor in part.items())


def test_slots_in_which_models_differ():
    other = {key: tensor.clone() for key, tensor in MODELS[0].items()}
    other["up_blocks.1.upsamplers.0.conv.bias"][0] += 1
    assert differing_slots([MODELS[0], MODELS[0]], "sd1") == frozenset()
    assert differing_slots([MODELS[0], other], "sd1") == {"OUT05"}
    assert differing_slots(MODELS, "sd1") == set(slots("sd1")) - {"BASE"}


def test_models_and_weights_that_do_not_fit_are_refused():
    flat = parse_weights("FLAT_50", "sd1")
    with pytest.raises(ValueError, match="got 2 sets for 3 models"):
        merge_blocks(MODELS, [flat, flat], "sd1")
    short = {key: tensor for key, tensor in MODELS[1].items() if key != "conv_in.bias"}
    with pytest.raises(ValueError, match=r"model 2 lacks 'conv_in\.bias'"):
        merge_blocks([MODELS[0], short], [flat, flat], "sd1")
    with pytest.raises(ValueError, match=r"model 1 lacks 'conv_in\.bias'"):
        merge_blocks([short, MODELS[0]], [flat, flat], "sd1")
