from __future__ import annotations

import math

import pytest
import torch
from diffusers import FluxTransformer2DModel

from diffusemble.blocks.unet import UNetBlocks
from diffusemble.merging.blockwise import (
    FAMILIES,
    block_ratios,
    complement,
    parse_weights,
    slot_of,
    slots,
)
from diffusemble.merging.presets import PRESETS
from tests import ldm
from tests.tiny import tiny_pipeline, tiny_sdxl_unet, tiny_unet

SD2 = {"attention_head_dim": (2, 2, 4, 4), "use_linear_projection": True}
UNETS = {"sd1": tiny_unet, "sd2": lambda: tiny_unet(**SD2), "sdxl": tiny_sdxl_unet}


@pytest.mark.parametrize(("family", "count"), [("sd1", 26), ("sd2", 26), ("sdxl", 20), ("flux", 61)])
def test_every_family_has_as_many_slots_as_the_usual_lists(family, count):
    assert len(slots(family)) == len(set(slots(family))) == count
    assert slots(family)[0] == "BASE"


@pytest.mark.parametrize("family", UNETS)
def test_a_tensor_is_in_the_slot_of_the_aggregation_point_that_runs_it(family):
    """The independent reference: whose gradient a point's own block touches."""
    unet = UNETS[family]()
    points = UNetBlocks(unet).names
    assert len(points) == len(slots(family)) - 1
    for point, slot in zip(points, slots(family)[1:], strict=True):
        prefixes = _modules_of(unet, point)
        keys = [key for key in unet.state_dict() if key.startswith(prefixes)]
        assert keys
        assert {slot_of(key, family) for key in keys} == {slot}, point


def _modules_of(unet, point: str) -> tuple[str, ...]:
    if point == "conv_in":
        return ("conv_in.", "time_embedding.", "add_embedding.")
    if point == "mid":
        return ("mid_block.",)
    way, level, what = point.split(".")
    if what == "downsample":
        return (f"down_blocks.{level}.downsamplers.",)
    layer = int(what.removeprefix("layer"))
    own = tuple(f"{way}_blocks.{level}.{part}.{layer}." for part in ("resnets", "attentions"))
    if way == "up" and layer == 2:
        own += (f"up_blocks.{level}.upsamplers.",)
        own += ("conv_norm_out.", "conv_out.") if int(level) == len(unet.up_blocks) - 1 else ()
    return own


@pytest.mark.parametrize("family", UNETS)
def test_no_tensor_of_a_denoiser_is_base_and_no_slot_is_empty(family):
    found = {slot_of(key, family) for key in UNETS[family]().state_dict()}
    assert found == set(slots(family)) - {"BASE"}


@pytest.mark.parametrize("family", UNETS)
def test_one_tensor_has_one_slot_whatever_the_layout_of_its_file(family):
    unet = UNETS[family]()
    original = ldm.unet(unet)
    for (key, tensor), (other, same) in zip(unet.state_dict().items(), original.items(), strict=True):
        assert torch.equal(tensor, same)
        want = slot_of(key, family)
        assert slot_of(other, family) == slot_of("model.diffusion_model." + other, family) == want
        assert slot_of("unet." + key, family) == slot_of("unet/" + key, family) == want


@pytest.mark.parametrize("parts", [ldm.SD1, ldm.SD2, ldm.SDXL], ids=["sd1", "sd2", "sdxl"])
def test_everything_beside_the_denoiser_is_base(parts):
    pipeline = tiny_pipeline()
    for name in ("vae", "text_encoder"):
        prefix, convert = parts[name]
        model = getattr(pipeline, name)
        keys = [*model.state_dict(), *(prefix + key for key in convert(model))]
        assert {slot_of(key, family) for key in keys for family in UNETS} == {"BASE"}
    assert {slot_of(key, "sd1") for key in ("betas", "model_ema.decay", "conditioner.embedders.0.logit_scale")} == {
        "BASE"
    }


def test_flux_slots_follow_the_transformer():
    with torch.device("meta"):
        model = FluxTransformer2DModel(guidance_embeds=True)
    found = [slot_of(key, "flux") for key in model.state_dict()]
    assert set(found) == set(slots("flux")) - {"BASE", "T5"}
    for key, slot in zip(model.state_dict(), found, strict=True):
        parts = key.split(".")
        want = {"transformer_blocks": "D", "single_transformer_blocks": "S"}.get(parts[0])
        if want:
            assert slot == f"{want}{int(parts[1]):02d}"
        else:
            assert slot == ("OUT" if parts[0] in ("norm_out", "proj_out") else "IN"), key


@pytest.mark.parametrize(
    ("key", "slot"),
    [
        ("img_in.weight", "IN"),
        ("guidance_in.in_layer.bias", "IN"),
        ("vector_in.out_layer.weight", "IN"),
        ("double_blocks.18.img_attn.qkv.weight", "D18"),
        ("model.diffusion_model.double_blocks.0.txt_mlp.2.bias", "D00"),
        ("single_blocks.37.linear1.weight", "S37"),
        ("final_layer.adaLN_modulation.1.weight", "OUT"),
        ("transformer/single_transformer_blocks.3.proj_out.weight", "S03"),
        ("text_encoders.t5xxl.transformer.encoder.block.3.layer.0.SelfAttention.q.weight", "T5"),
        ("text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight", "BASE"),
        ("encoder.block.3.layer.0.SelfAttention.q.weight", "T5"),
        ("text_encoder_2/shared.weight", "T5"),
        ("text_encoder/text_model.final_layer_norm.weight", "BASE"),
        ("vae.decoder.conv_in.weight", "BASE"),
        ("vae/decoder.mid_block.resnets.0.conv1.weight", "BASE"),
    ],
)
def test_flux_files_of_the_original_code_and_of_whole_pipelines(key, slot):
    assert slot_of(key, "flux") == slot


def test_a_tensor_beyond_the_family_is_named():
    with pytest.raises(ValueError, match=r"'down_blocks\.3\.resnets.0.conv1.weight' would be in slot IN10, but 'sdxl'"):
        slot_of("down_blocks.3.resnets.0.conv1.weight", "sdxl")
    with pytest.raises(ValueError, match=r"no family 'sd3' with block weights. Choose one of: sd1, sd2, sdxl, flux"):
        slots("sd3")


def test_ratios_sum_to_one_over_the_experts():
    weights = [{"M00": 1.0}, {"M00": 2.0}, {"M00": 1.0}]
    assert block_ratios(weights, "M00") == (0.25, 0.5, 0.25)
    assert block_ratios([{"M00": 3.0}], "M00") == (1.0,)
    with pytest.raises(ValueError, match="slot 'M00' are zero for all 2 experts"):
        block_ratios([{"M00": 0.0}, {"M00": 0.0}], "M00")
    with pytest.raises(ValueError, match="Expert 2 has no weight for slot 'M00'"):
        block_ratios([{"M00": 1.0}, {}], "M00")


def test_two_experts_share_every_slot():
    second = parse_weights("GRAD_V", "sdxl")
    for slot in slots("sdxl"):
        assert block_ratios([complement(second), second], slot) == pytest.approx((1 - second[slot], second[slot]))
    with pytest.raises(ValueError, match="Slot 'M00' takes 2 of the second expert, but shares are from 0 to 1"):
        complement({"M00": 2.0})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_fits_every_family(name, family):
    weights = parse_weights(name, family)
    assert tuple(weights) == slots(family)
    assert all(0 <= weight <= 1 for weight in weights.values())


def test_presets_by_their_closed_forms():
    v = parse_weights("grad_v", "sd1")
    assert (v["BASE"], v["IN00"], v["IN06"], v["M00"], v["OUT05"], v["OUT11"]) == (0, 1, 0.5, 0, 0.5, 1)
    assert [name for name, w in parse_weights("MID12", "sd1").items() if w] == list(slots("sd1"))[7:20]
    assert [name for name, w in parse_weights("OUT07", "sd1").items() if w] == [f"OUT{i:02d}" for i in range(7)]
    wrap = [name for name, w in parse_weights("WRAP08", "sd1").items() if w]
    assert wrap == [f"IN{i:02d}" for i in range(8)] + [f"OUT{i:02d}" for i in range(4, 12)]
    assert parse_weights("COSINE", "sd1")["IN01"] == pytest.approx((1 + math.cos(math.pi / 24)) / 2)
    assert set(parse_weights("FLAT_25", "flux").values()) == {0.25}
    assert sum(parse_weights("RING08", "sd1").values()) == 8
    assert parse_weights("IN12", "sd1")["IN11"] == 1 > parse_weights("IN12", "sd1")["M00"]


def test_weights_as_numbers_text_or_mapping():
    numbers = [i / 25 for i in range(26)]
    whole = parse_weights(numbers, "sd1")
    assert list(whole.values()) == numbers
    assert parse_weights(", ".join(map(str, numbers)), "sd2") == whole
    assert parse_weights(dict(reversed(whole.items())), "sd1") == whole
    without = parse_weights(numbers[1:], "sd1")
    assert without["BASE"] == pytest.approx(sum(numbers[1:]) / 25)
    assert next(iter(without)) == "BASE"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("GRAD_X", "no preset 'GRAD_X' of block weights. Choose one of: ALL_A"),
        ([0.5] * 20, r"for 'sd1' are 26 numbers \(BASE, IN00 to OUT11\), or 25 without BASE; got 20"),
        ({"IN12": 1.0}, "'sd1' has no slots IN12. Its slots: BASE, IN00"),
        ({"IN00": 1.0}, "no weight for IN01, IN02"),
        ([0.5] * 25 + ["half"], "slot 'OUT11' is 'half', which is no number"),
        ([True] * 26, "slot 'BASE' is True"),
        ([-0.1] * 26, "slot 'BASE' is -0.1"),
        ([math.nan] * 25, "slot 'IN00' is nan"),
        (0.5, "a preset's name, numbers, or a mapping by slot; got 0.5"),
    ],
)
def test_wrong_weights_are_explained(value, message):
    with pytest.raises(ValueError, match=message):
        parse_weights(value, "sd1")
