"""What holds for every row of the table of metrics, on tiny weights of the real layout."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusemble.evaluation.metrics import aesthetic, dinov2, image_reward, inception, preference
from diffusemble.evaluation.metrics.base import load_metric, score
from diffusemble.evaluation.metrics.dinov2 import Dinov2
from diffusemble.registry import METRICS
from evaluation.metrics.tiny_metrics import BLIP_TEXT, BLIP_VISION, CLIP, tiny_dinov2, write_weights

PROMPTS = ["strawberry, noto style", "tiger, 3d style", "old key, flat style", "cat face, openmoji style"]
PAIRED = {name for name, entry in METRICS.items() if entry.load().kind == "image"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_weights(tmp_path_factory.mktemp("weights"))
    torch.manual_seed(0)
    torch.save(inception.InceptionV3().state_dict(), folder / inception.WEIGHTS.name)
    return folder


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real classes at sizes that fit the tiny files; Inception sees its smallest picture."""
    monkeypatch.setattr(inception, "SIZE", 75)
    monkeypatch.setattr(dinov2, "SIZE", 28)
    monkeypatch.setattr(preference, "VIT_H_14", CLIP)
    monkeypatch.setattr(aesthetic, "WIDTH", CLIP["projection_dim"])
    monkeypatch.setattr(image_reward, "VISION", BLIP_VISION)
    monkeypatch.setattr(image_reward, "TEXT", BLIP_TEXT)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(4, 3, 31, 36, generator=torch.Generator().manual_seed(0))


def scored(metric: Any, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    return score(metric, images, prompts, images.flip(3))


@pytest.mark.parametrize("name", sorted(PAIRED))
@pytest.mark.usefixtures("tiny")
def test_image_metrics_give_each_picture_a_number_of_its_own(name: str, weights: Path, images: torch.Tensor):
    metric = load_metric(name, weights)
    found = scored(metric, images, PROMPTS)
    assert (found.shape, found.dtype, found.device.type) == ((4,), torch.float32, "cpu")
    assert torch.isfinite(found).all()
    assert metric.higher_is_better
    order = [2, 0, 3, 1]
    turned = scored(metric, images[order], [PROMPTS[i] for i in order])
    torch.testing.assert_close(turned, found[order], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(scored(metric, images[:1], PROMPTS[:1]), found[:1], rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="got 4 pictures and 3 prompts"):
        scored(metric, images, PROMPTS[:3])


@pytest.mark.parametrize("name", sorted(set(METRICS) - PAIRED))
@pytest.mark.usefixtures("tiny")
def test_set_metrics_tell_a_set_from_a_worse_one(name: str, weights: Path, images: torch.Tensor):
    metric = load_metric(name, weights)
    features = metric.net(images)
    assert (features.shape[0], features.dtype, features.device.type) == (4, torch.float32, "cpu")
    assert metric.features
    features = features[:, :40]  # statistics of all would take long and show no more
    one, reference = metric.state(), metric.state()
    generator = torch.Generator().manual_seed(1)
    many = features.repeat(4, 1) + 0.05 * torch.randn(16, features.shape[1], generator=generator)
    one.update(many)
    reference.update(features.repeat(4, 1) + 0.05 * torch.randn(16, features.shape[1], generator=generator))
    near = one.compute(reference if metric.needs_reference else None)
    if metric.needs_reference:
        far = metric.state()
        far.update(many + 0.5)
        assert near < far.compute(reference)
        assert not metric.higher_is_better
    else:
        assert near >= 1


@pytest.mark.parametrize("name", [name for name in METRICS if not name.endswith(("net", "probe", "match"))])
def test_missing_weights_are_explained(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(FileNotFoundError, match=rf"needs the weights .*({tmp_path}|hf download|Download)"):
        load_metric(name, tmp_path)


def test_every_row_says_what_it_is():
    for name, entry in METRICS.items():
        metric = entry.load()
        assert metric.kind in ("image", "set"), name
        assert isinstance(metric.higher_is_better, bool), name
        assert entry.title
        if metric.kind == "image":
            assert metric.against in ("prompt", "picture")
        else:
            assert isinstance(metric.needs_reference, bool)
    assert "torchvision" not in sys.modules


def test_unknown_names_and_missing_real_pictures_are_refused(weights: Path, images: torch.Tensor):
    with pytest.raises(ValueError, match=r"Unknown metric 'lpips'.*fid, is, kid"):
        load_metric("lpips")
    with pytest.raises(ValueError, match=r"ClipI compares pictures with real ones, but none were given"):
        score(load_metric("clip-i", weights), images, PROMPTS)


def test_dinov2_gives_the_class_token_after_the_last_normalisation(images: torch.Tensor):
    model = tiny_dinov2()
    net = Dinov2(model, size=28)
    with torch.no_grad():
        whole = model(pixel_values=net.prepare(images), output_hidden_states=True)
    expected = model.layernorm(whole.hidden_states[-1])[:, 0]
    torch.testing.assert_close(net(images), expected, rtol=1e-4, atol=1e-5)


def test_dinov2_large_has_its_published_size():
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, image_size=518, patch_size=14)
    with torch.device("meta"):
        model = Dinov2Model(config)
    assert sum(p.numel() for p in model.parameters()) == 304_368_640
