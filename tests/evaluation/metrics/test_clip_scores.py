"""CLIP and the scores on it: cosines, scales, names of weights."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from diffusemble.evaluation.metrics.aesthetic import Aesthetic, LinearStack
from diffusemble.evaluation.metrics.clip import CLIP_L, Clip, ClipFeatures, ClipI, ClipT
from diffusemble.evaluation.metrics.open_clip import VIT_H_14, transformers_keys
from diffusemble.evaluation.metrics.pixels import CLIP_MEAN, CLIP_STD
from diffusemble.evaluation.metrics.preference import HPSv2, PickScore
from evaluation.metrics.tiny_metrics import CLIP, OpenClip, shaken, tiny_clip
from tiny import tiny_tokenizer

PROMPTS = ["a cat", "two grey cats in the rain", "a dog"]


@pytest.fixture(scope="module")
def clip() -> Clip:
    return Clip.around(tiny_clip(), tiny_tokenizer(20))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(3, 3, 40, 33, generator=torch.Generator().manual_seed(0))


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_clip_t_is_the_cosine_that_transformers_own_forward_gives(clip, images):
    processor = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    arrays = list((images * 255).round().byte().permute(0, 2, 3, 1).numpy())
    pixels = torch.stack([torch.as_tensor(x) for x in processor(arrays)["pixel_values"]])
    tokens = clip.tokenizer(PROMPTS, padding=True, truncation=True, max_length=20, return_tensors="pt")
    with torch.no_grad():
        logits = clip.model(pixel_values=pixels, **tokens).logits_per_image
    torch.testing.assert_close(ClipT(clip)(images, PROMPTS), logits.diagonal() / clip.scale, rtol=1e-4, atol=1e-5)


def test_pickscore_is_the_learned_scale_times_the_cosine(clip, images):
    expected = clip.model.logit_scale.exp() * ClipT(clip)(images, PROMPTS)
    torch.testing.assert_close(PickScore(clip)(images, PROMPTS), expected)


def test_a_picture_is_like_itself_and_sizes_may_differ(clip, images):
    score = ClipI(clip)
    torch.testing.assert_close(score(images, images), torch.ones(3))
    other = score(images, torch.rand(3, 3, 29, 50, generator=torch.Generator().manual_seed(1)))
    assert other.shape == (3,)
    assert (other < 1).all()
    with pytest.raises(ValueError, match="got 3 pictures and 2 real ones"):
        score(images, images[:2])


def test_weights_stored_in_half_precision_are_scored_in_float32(tmp_path: Path, clip, images):
    folder = tmp_path / CLIP_L.name
    tiny_clip().half().save_pretrained(folder)
    tiny_tokenizer(20).save_pretrained(folder)
    loaded = ClipT.load(tmp_path)
    assert loaded.clip.model.dtype == torch.float32
    torch.testing.assert_close(loaded(images, PROMPTS), ClipT(clip)(images, PROMPTS), rtol=1e-2, atol=1e-2)


def test_a_prompt_does_not_depend_on_its_neighbours_or_on_what_is_cut_off(clip):
    alone = torch.cat([clip.texts([prompt]) for prompt in PROMPTS])
    torch.testing.assert_close(clip.texts(PROMPTS), alone, rtol=1e-4, atol=1e-5)
    long = "abcdefghijklmnopqrstuvw"
    torch.testing.assert_close(clip.texts([long]), clip.texts([long + " xyz"]))


def test_cmmds_features_are_unit_vectors_of_the_stretched_picture(clip, images):
    found = ClipFeatures(clip)(images)
    sized = F.interpolate(images, (28, 28), mode="bicubic")
    mean, std = torch.tensor(CLIP_MEAN).view(3, 1, 1), torch.tensor(CLIP_STD).view(3, 1, 1)
    with torch.no_grad():
        seen = clip.model.vision_model(pixel_values=(sized - mean) / std).pooler_output
        expected = F.normalize(clip.model.visual_projection(seen), dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))


def test_open_clips_weights_give_open_clips_embeddings(images):
    reference = shaken(OpenClip(), 7)
    score = HPSv2.of(reference.state_dict(), CLIP, tiny_tokenizer(20), "file.pt", "cpu")
    pixels = score.clip.prepare(images)
    tokens = score.clip.tokenizer(PROMPTS, padding=True, truncation=True, max_length=20, return_tensors="pt").input_ids
    with torch.no_grad():
        seen = F.normalize(reference.encode_image(pixels), dim=1)
        read = F.normalize(reference.encode_text(tokens), dim=1)
    torch.testing.assert_close(score.clip.images(images), seen, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(score.clip.texts(PROMPTS), read, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(score(images, PROMPTS), 100 * (seen * read).sum(dim=1), rtol=1e-3, atol=1e-3)


def test_hps_looks_at_the_whole_picture(clip):
    wide = torch.zeros(1, 3, 28, 84)
    wide[..., :28] = torch.rand(3, 28, 28, generator=torch.Generator().manual_seed(0))
    changed = wide.clone()
    changed[..., :20] = 1  # outside the middle square
    assert not torch.allclose(HPSv2(clip)(wide, PROMPTS[:1]), HPSv2(clip)(changed, PROMPTS[:1]))
    assert torch.equal(PickScore(clip)(wide, PROMPTS[:1]), PickScore(clip)(changed, PROMPTS[:1]))


def test_the_names_of_vit_h_14_are_all_there_and_its_size_is_the_published_one():
    with torch.device("meta"):
        model = CLIPModel(CLIPConfig(**VIT_H_14))
    assert parameters(model) == 986_109_441
    one = {key: value for key, value in OpenClip().state_dict().items() if ".resblocks.0." in key}
    layers = {"visual.transformer": 32, "transformer": 24}
    names = set(OpenClip().state_dict()) - {key for key in OpenClip().state_dict() if ".resblocks." in key}
    for key in one:
        prefix = key.split(".resblocks.")[0]
        names |= {key.replace("resblocks.0", f"resblocks.{number}") for number in range(layers[prefix])}
    renamed = transformers_keys({name: torch.zeros(3, 3) for name in names}, "file.pt")
    assert set(renamed) == {key for key in model.state_dict() if not key.endswith("position_ids")}


def test_names_of_other_models_are_refused():
    with pytest.raises(ValueError, match=r"file.pt: open_clip's CLIP has no 'visual.trunk.stem.weight'"):
        transformers_keys({"visual.trunk.stem.weight": torch.zeros(1)}, "file.pt")
    assert transformers_keys({"module.logit_scale": torch.ones(()), "attn_mask": torch.zeros(2, 2)}, "") == {
        "logit_scale": torch.ones(())
    }


def test_aesthetic_head_is_linear_in_the_unit_embedding(clip, images):
    head = shaken(LinearStack(12), 5)
    score = Aesthetic(clip, head)(images)
    matrix = torch.eye(12)
    for layer in head.layers:
        if isinstance(layer, torch.nn.Linear):
            matrix = layer.weight @ matrix
    embeddings = clip.images(images)
    expected = embeddings @ matrix.T + head.layers(torch.zeros(1, 12))
    torch.testing.assert_close(score, expected.squeeze(1), rtol=1e-3, atol=1e-2)
    assert parameters(LinearStack()) == 927_969
    assert [key for key in LinearStack().state_dict() if "weight" in key] == [
        f"layers.{number}.weight" for number in (0, 2, 4, 6, 7)
    ]
