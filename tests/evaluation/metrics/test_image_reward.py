"""ImageReward against the same computation written out from the published names."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from diffusemble.evaluation.metrics import image_reward
from diffusemble.evaluation.metrics.image_reward import DEVIATION, MEAN, ImageReward, RewardNet, own_keys
from diffusemble.evaluation.metrics.weights import fill
from evaluation.metrics.tiny_metrics import BLIP_TEXT, BLIP_VISION, BlipTower, reward_tensors, tiny_bert_tokenizer

PROMPTS = ["a cat", "two grey cats", "dog"]


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return reward_tensors()


@pytest.fixture(scope="module")
def reward(tensors) -> ImageReward:
    net = RewardNet(BLIP_VISION, BLIP_TEXT)
    fill(net, own_keys(tensors), "ImageReward.pt")
    return ImageReward(net, tiny_bert_tokenizer())


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(3, 3, 40, 33, generator=torch.Generator().manual_seed(0))


def read(weights: dict[str, Tensor], tokens: Tensor, mask: Tensor, seen: Tensor) -> Tensor:
    """BLIP's text encoder: BERT with attention to the picture between attention to the text and the two layers."""
    w = {key.removeprefix("blip.text_encoder."): value for key, value in weights.items()}

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-12)

    def attend(x: Tensor, y: Tensor, name: str, hidden: Tensor | None) -> Tensor:
        q, k, v = (
            linear(z, f"{name}.self.{part}").unflatten(2, (2, -1)).transpose(1, 2)
            for z, part in ((x, "query"), (y, "key"), (y, "value"))
        )
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
        scores = scores if hidden is None else scores.masked_fill(hidden[:, None, None], -torch.inf)
        mixed = (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
        return norm(linear(mixed, f"{name}.output.dense") + x, f"{name}.output.LayerNorm")

    x = w["embeddings.word_embeddings.weight"][tokens] + w["embeddings.position_embeddings.weight"][: tokens.shape[1]]
    x = norm(x, "embeddings.LayerNorm")
    for layer in ("encoder.layer.0", "encoder.layer.1"):
        x = attend(x, x, f"{layer}.attention", mask == 0)
        x = attend(x, seen, f"{layer}.crossattention", None)
        y = linear(F.gelu(linear(x, f"{layer}.intermediate.dense")), f"{layer}.output.dense")
        x = norm(x + y, f"{layer}.output.LayerNorm")
    return x[:, 0]


def test_rewards_are_those_of_the_net_written_out(reward, tensors, images):
    tower = BlipTower()
    tower.load_state_dict(
        {key.removeprefix("blip.visual_encoder."): value for key, value in tensors.items() if "visual_encoder" in key}
    )
    tokens = reward.tokenizer(PROMPTS, padding="max_length", max_length=35, truncation=True, return_tensors="pt")
    with torch.no_grad():
        found = read(tensors, tokens["input_ids"], tokens["attention_mask"], tower(reward.prepare(images)))
        for number in (0, 2, 4, 6, 7):
            found = F.linear(found, tensors[f"mlp.layers.{number}.weight"], tensors[f"mlp.layers.{number}.bias"])
    expected = (found.squeeze(1) - MEAN) / DEVIATION
    assert expected.std() > 1e-3
    torch.testing.assert_close(reward(images, PROMPTS), expected, rtol=1e-4, atol=1e-4)


def test_every_picture_is_scored_with_its_own_prompt(reward, images):
    alone = [reward(images[i : i + 1], [PROMPTS[i]]) for i in range(3)]
    torch.testing.assert_close(reward(images, PROMPTS), torch.cat(alone), rtol=1e-4, atol=1e-5)
    swapped = reward(images, PROMPTS[::-1])
    assert swapped.shape == (3,)
    assert not torch.allclose(swapped, reward(images, PROMPTS))


def test_long_prompts_are_cut_after_35_tokens(reward, images):
    whole = "ab " * 16 + "a"  # 33 tokens, with the first and the last 35
    longer = reward(images[:1], [whole + " cd"])
    torch.testing.assert_close(reward(images[:1], [whole]), longer)
    assert not torch.allclose(reward(images[:1], [whole[:-2]]), longer)


def test_sizes_are_the_published_ones():
    with torch.device("meta"):
        net = RewardNet(image_reward.VISION, image_reward.TEXT)
    # ViT-L/16 at 224 pixels without its classifier has 303,301,632 parameters; the head is the aesthetic predictor's.
    assert sum(p.numel() for p in net.vision.parameters()) == 303_301_632
    assert sum(p.numel() for p in net.head.parameters()) == 927_969
    bert, picture = 108_891_648 + 2 * 768, 12 * (2 * (768 + 1) * 768 + 2 * (1024 + 1) * 768 + 2 * 768)
    assert sum(p.numel() for p in net.text.parameters()) == bert + picture - 2 * 768


def test_blips_projections_are_left_and_unknown_parts_refused(tensors):
    given = {**tensors, "blip.vision_proj.weight": torch.zeros(2), "blip.visual_encoder.blocks.0.ls1": torch.zeros(1)}
    named = own_keys(given)
    assert not any("proj.weight" in key and "vision_proj" in key for key in named)
    with pytest.raises(ValueError, match=r"vision.blocks.0.ls1 is left over"):
        fill(RewardNet(BLIP_VISION, BLIP_TEXT), named, "ImageReward.pt")
