"""The probe's parts, and the recipe that trains it, on made-up features; the shipped probe says how good it is."""

from pathlib import Path

import pytest
import torch

from diffusemble.evaluation.metrics.style_probe import HEADS, StyleProbe, published_accuracy
from recipes.zoo import style_probe as recipe
from recipes.zoo.data import STYLES, split_of


def material(concepts: int = 50) -> recipe.Material:
    """Pictures whose features are a concept's code, a style's code and noise."""
    generator = torch.Generator().manual_seed(0)
    things = torch.randn(concepts, 1, 1, 2560, generator=generator)
    looks = 0.4 * torch.randn(1, len(STYLES), 1, 2560, generator=generator)
    noise = torch.randn(concepts, len(STYLES), 2, 2560, generator=generator)
    names = [f"thing {number}" for number in range(concepts)]
    splits = [[split_of(name, style) for style in STYLES] for name in names]
    return recipe.Material(things + looks + noise, splits, names)


def test_probe_learns_styles_of_things_it_has_not_seen():
    found = material()
    probe = recipe.fit(*recipe.choose(found.pictures, found.where("train")), 1e-2)
    unseen = recipe.accuracy(probe, found.pictures, found.where("concept"))
    assert unseen["pictures"] == 2 * int(found.where("concept").sum())
    assert unseen["right"] > 0.9
    assert unseen["probability"] > 0.5
    again = recipe.fit(*recipe.choose(found.pictures, found.where("train")), 1e-2)
    assert torch.equal(again.layer.weight, probe.layer.weight)


def test_pictures_are_chosen_with_their_own_style_and_all_variants():
    found = material(5)
    wanted = torch.zeros(5, len(STYLES), dtype=torch.bool)
    wanted[1, 2] = wanted[4, 0] = True
    features, styles = recipe.choose(found.pictures, wanted)
    assert styles.tolist() == [2, 2, 0, 0]
    assert torch.equal(features[1], found.pictures[1, 2, 1])
    assert torch.equal(features[2], found.pictures[4, 0, 0])


def test_nothing_held_out_is_learned_from():
    found = material()
    masks = [found.where(split) for split in ("train", "pair", "concept")]
    assert torch.equal(sum(mask.int() for mask in masks), torch.ones(50, len(STYLES), dtype=torch.int))
    assert all(mask.any() for mask in masks)


def test_the_penalty_is_chosen_among_those_offered(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(recipe, "PENALTIES", (1e-3, 1e3))
    assert recipe.best_penalty(material()) == 1e-3  # the other forgets everything


def test_the_score_is_the_probability_of_the_style_in_the_caption():
    torch.manual_seed(0)
    probe = StyleProbe(("noto", "high contrast", "3d"))
    features = torch.randn(3, 2560)
    captions = ["cat, 3D style", "old key, with a hole, high contrast style", "noto style "]
    found = probe.score(features, captions)
    expected = probe.probabilities(features)[torch.arange(3), [2, 1, 0]]
    assert torch.equal(found, expected)
    torch.testing.assert_close(probe.probabilities(features).sum(dim=1), torch.ones(3))


def test_captions_without_a_known_style_are_refused():
    probe = StyleProbe(("noto", "3d"))
    for caption in ("a cat", "cat, watercolour style", "noto style cat"):
        with pytest.raises(ValueError, match=rf"captions that end in a style.*'{caption}'.*one of: noto, 3d"):
            probe.style_of(caption)


def test_probe_survives_the_disk(tmp_path: Path):
    probe = StyleProbe(("noto", "3d"))
    probe.save(tmp_path / "probe.safetensors", {"held-out concepts": {"right": 0.5}})
    loaded = StyleProbe.load(tmp_path / "probe.safetensors")
    assert loaded.styles == ("noto", "3d")
    torch.testing.assert_close(loaded.layer.weight, probe.layer.weight, rtol=1e-3, atol=1e-4)
    assert published_accuracy(tmp_path / "probe.safetensors")["held-out concepts"] == {"right": 0.5}
    with pytest.raises(FileNotFoundError, match=r"style probe are missing.*python -m recipes.zoo style_probe"):
        StyleProbe.load(tmp_path / "nowhere.safetensors")


def test_shipped_probe_knows_the_zoos_styles_and_says_how_well():
    assert StyleProbe.load().styles == tuple(STYLES)
    assert HEADS.stat().st_size < 50_000
    report = published_accuracy()
    assert report["held-out concepts"]["right"] > 0.8
    assert report["held-out concepts"]["right"] < report["seen pictures"]["right"]
