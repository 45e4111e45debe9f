"""IP-Adapter: agreement with the published code and with diffusers' loader, and the laws of a control."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel, CLIPVisionModelWithProjection

from diffusemble.controls.base import Call, ControlledUNet
from diffusemble.controls.image_prompt import ImagePrompt, ImagePromptCondition, image_prompt_condition
from diffusemble.controls.pipelines import pipeline_with
from tiny import WIDTH, randomised, tiny_pipeline, tiny_unet

GOLDEN = Path(__file__).parents[1] / "golden" / "amdm" / "ip_adapter_tiny.safetensors"
IMAGE = 12  # width of image embeddings


def parts(start: str) -> dict[str, torch.Tensor]:
    tensors = {key.removeprefix(start): value for key, value in load_file(GOLDEN).items() if key.startswith(start)}
    return {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("ip") / "ip-adapter.safetensors"
    save_file(parts("adapter."), file)
    return file


def golden_unet(**config: Any) -> UNet2DConditionModel:
    sizes = {"sample_size": 16, "block_out_channels": (8, 8, 16, 16), "norm_num_groups": 4, "cross_attention_dim": 24}
    return UNet2DConditionModel(**{**sizes, "attention_head_dim": 8, **config}).eval()


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    unet = golden_unet()
    unet.load_state_dict(parts("unet."))
    return unet


@pytest.fixture(scope="module")
def tiny() -> UNet2DConditionModel:
    return tiny_unet()


@pytest.fixture(scope="module")
def control(tiny) -> ImagePrompt:
    torch.manual_seed(3)
    return ImagePrompt.from_unet(tiny, IMAGE)


def told(seed: int = 0, scale: float = 1.0, images: int = 1) -> ImagePromptCondition:
    return ImagePromptCondition(torch.randn(images, IMAGE, generator=torch.manual_seed(seed)), scale)


@torch.no_grad()
def run(model: Any, sample: torch.Tensor, text: torch.Tensor, **given: Any) -> torch.Tensor:
    return model(sample, 601, text, **given).sample


def inputs(rows: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.manual_seed(5)
    half = torch.randn(rows // 2, 4, 8, 8, generator=generator)
    return torch.cat((half, half)), torch.randn(rows, 7, WIDTH, generator=generator)


def prompted(condition: Any, **more: Any) -> dict[str, Any]:
    return {"cross_attention_kwargs": {"image_prompt": condition, **more}}


@pytest.mark.parametrize("scale", [1.0, 0.6, 0.0])
def test_the_published_code_agrees(published, unet, scale):
    given = parts("in.")
    call = Call(given["sample"], given["timestep"], given["encoder_hidden_states"], guided=True)
    condition = ImagePromptCondition(given["clip_image_embeds"], scale)
    control = ImagePrompt.from_pretrained(published)
    with torch.no_grad(), control.attached(unet, condition, call):
        output = unet(call.sample, given["timestep"], call.text)
    assert (output.sample - parts("out.")[f"eps_scale_{scale}"]).abs().max() < 1.5e-6


def test_the_published_tokens(published):
    control, expected = ImagePrompt.from_pretrained(published), parts("out.")
    call = Call(torch.zeros(2, 4, 16, 16), 0, torch.zeros(2, 7, 24), guided=True)
    with torch.no_grad():
        tokens, _ = control._tokens([ImagePromptCondition(parts("in.")["clip_image_embeds"])], call)
    assert torch.allclose(tokens[:1, 0], expected["uncond_image_tokens"], atol=1e-6)
    assert torch.allclose(tokens[1:, 0], expected["image_tokens"], atol=1e-6)


def test_diffusers_reads_what_is_saved(control, tmp_path):
    control.save_pretrained(tmp_path / "ip.safetensors")
    stock = tiny_pipeline()
    stock.load_ip_adapter(str(tmp_path), subfolder="", weight_name="ip.safetensors", image_encoder_folder=None)
    embeds = told().embeds
    drawing = {"num_inference_steps": 2, "output_type": "latent"}
    theirs = stock(
        "a cat",
        ip_adapter_image_embeds=[torch.stack((torch.zeros_like(embeds), embeds))],
        generator=torch.manual_seed(0),
        **drawing,
    ).images
    ours = pipeline_with(tiny_pipeline(), [control])(
        "a cat", **prompted(told()), generator=torch.manual_seed(0), **drawing
    ).images
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_the_file_gives_the_same_control(control, tmp_path):
    control.save_pretrained(tmp_path / "ip.safetensors")
    again = ImagePrompt.from_pretrained(tmp_path / "ip.safetensors").state_dict()
    assert all(torch.equal(again[key], value) for key, value in control.state_dict().items())


def test_afterwards_the_unet_is_the_plain_one(tiny, control):
    sample, text = inputs()
    before, keys = run(tiny, sample, text), list(tiny.state_dict())
    changed = run(ControlledUNet(tiny, [control]), sample, text, **prompted(told()))
    assert not torch.allclose(changed, before)
    assert torch.equal(run(tiny, sample, text), before)
    assert list(tiny.state_dict()) == keys


def test_scale_zero_is_the_plain_unet(tiny, control):
    sample, text = inputs()
    assert torch.equal(
        run(ControlledUNet(tiny, [control]), sample, text, **prompted(told(scale=0.0))), run(tiny, sample, text)
    )


def test_every_prompt_has_its_picture(tiny, control):
    sample, text = inputs(4)
    model = ControlledUNet(tiny, [control])
    both = run(model, sample, text, **prompted([told(1), told(2)]))
    for row, seed in enumerate((1, 2)):
        alone = run(model, sample[row::2], text[row::2], **prompted(told(seed)))
        assert torch.allclose(both[row::2], alone, atol=1e-5)
    unguided = run(model, sample, text, **prompted([told(1), told(2)], guided=False))  # two pictures of each prompt
    assert torch.allclose(unguided[2:], run(model, sample, text, **prompted(told(2), guided=False))[2:], atol=1e-5)


def test_it_stacks_on_a_gated_unet(control):
    gated = tiny_unet(attention_type="gated", cross_attention_dim=WIDTH)
    plain = tiny_unet()
    plain.load_state_dict(gated.state_dict(), strict=False)
    sample, text = inputs()
    outputs = [run(ControlledUNet(unet.eval(), [control]), sample, text, **prompted(told())) for unet in (gated, plain)]
    assert torch.equal(*outputs)


def test_gradients_reach_every_weight(tiny):
    control = ImagePrompt.from_unet(tiny, IMAGE)
    sample, text = inputs()
    ControlledUNet(tiny, [control], guided=False)(
        sample, 601, text, **prompted(told())
    ).sample.square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in control.parameters())
    tiny.zero_grad(set_to_none=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(tiny, control, dtype):
    expected = run(ControlledUNet(tiny, [control]), *inputs(), **prompted(told()))
    model = ControlledUNet(deepcopy(tiny), [control])
    model.unet.to(dtype)
    halves = [part.to(dtype) for part in inputs()]
    with pytest.raises(ValueError, match=rf"its weights are torch.float32. Convert them: control.to\({dtype}\)"):
        run(model, *halves, **prompted(told()))
    output = run(ControlledUNet(model.unet, [deepcopy(control).to(dtype)]), *halves, **prompted(told()))
    assert output.dtype == dtype
    assert (output - expected).abs().max() < 0.05 * expected.abs().max()


def test_sizes_of_the_published_weights():
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
        control = ImagePrompt.from_unet(unet, 1024)
    assert sum(parameter.numel() for parameter in control.parameters()) == 22_319_616


def test_a_picture_is_read_by_clip():
    sizes = {"hidden_size": 16, "intermediate_size": 20, "num_attention_heads": 2, "num_hidden_layers": 1}
    config = CLIPVisionConfig(image_size=8, patch_size=4, projection_dim=IMAGE, **sizes)
    encoder = randomised(CLIPVisionModelWithProjection(config))
    processor = CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    image = Image.new("RGB", (20, 10), "red")
    one = image_prompt_condition(image, encoder, processor, scale=0.5)
    assert one.embeds.shape == (1, IMAGE)
    assert one.scale == 0.5
    assert image_prompt_condition([image, image.rotate(90)], encoder, processor).embeds.shape == (2, IMAGE)
    with pytest.raises(ValueError, match="Use CLIPVisionModelWithProjection"):
        image_prompt_condition(image, randomised(CLIPVisionModel(config)), processor)
    with pytest.raises(ValueError, match="needs at least one picture"):
        image_prompt_condition([], encoder, processor)


def test_conditions_that_do_not_fit(tiny, control):
    sample, text = inputs(4)
    model = ControlledUNet(tiny, [control])
    cases = {
        "image embeddings of width 12, and one of 9 came": ImagePromptCondition(torch.zeros(1, 9)),
        "takes a ImagePromptCondition": torch.zeros(1, IMAGE),
        "3 conditions .* for 2 pictures": [told()] * 3,
        "of one scale; got .* for 2 of 2": [told(), told(scale=0.5)],
        "for 1 of 2": [told(), None],
    }
    for message, condition in cases.items():
        with pytest.raises(ValueError, match=message):
            run(model, sample, text, **prompted(condition))
    with pytest.raises(ValueError, match=r"one embedding per picture, \[k d\]; got \[1, 1, 12\]"):
        ImagePromptCondition(torch.zeros(1, 1, IMAGE))


def test_unets_that_do_not_fit(tiny, control, published):
    sample, text = inputs()
    with pytest.raises(ValueError, match="These weights are for 16 cross-attentions of the widths 8"):
        run(ControlledUNet(tiny, [ImagePrompt.from_pretrained(published)]), sample, text, **prompted(told()))
    stock = tiny_unet()
    with control.attached(stock, told(), Call(sample, 0, text, guided=True)), pytest.raises(ValueError, match="unload"):
        run(ControlledUNet(stock, [control]), sample, text, **prompted(told()))


def test_files_that_are_none(control, published, tmp_path):
    save_file(
        {"image_proj.latents": torch.zeros(1), "ip_adapter.1.to_k_ip.weight": torch.zeros(1)},
        tmp_path / "plus.safetensors",
    )
    with pytest.raises(ValueError, match=r"no plain IP-Adapter: .* such as image_proj.latents"):
        ImagePrompt.from_pretrained(tmp_path / "plus.safetensors")
    (tmp_path / "ip.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match="python -m diffusemble"):
        ImagePrompt.from_pretrained(tmp_path / "ip.bin")
    weights = load_file(published)
    del weights["ip_adapter.3.to_v_ip.weight"]
    save_file(weights, tmp_path / "short.safetensors")
    with pytest.raises(ValueError, match="is missing"):
        ImagePrompt.from_pretrained(tmp_path / "short.safetensors")
