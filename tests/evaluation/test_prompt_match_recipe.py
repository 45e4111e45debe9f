"""The recipe that trains the scorer, on made-up features."""

import pytest
import torch

from recipes.zoo import prompt_match as recipe
from recipes.zoo.data import STYLES


@pytest.fixture(scope="module")
def material() -> recipe.Material:
    """Forty concepts whose pictures and texts are noisy views of one hidden code; ten are kept for the test."""
    generator = torch.Generator().manual_seed(0)
    codes, n = torch.randn(40, 16, generator=generator), len(STYLES)
    see, read = torch.randn(16, 2560, generator=generator), torch.randn(16, 384, generator=generator)
    noise = torch.randn(40, n, recipe.VARIANTS, 2560, generator=generator)
    pictures = (codes @ see)[:, None, None] + noise
    texts = [(code @ read) + 0.5 * torch.randn(n + 3, 384, generator=generator) for code in codes]
    unseen = torch.arange(40) >= 30
    trained = (~unseen)[:, None].repeat(1, n)
    trained[:30, 0] = torch.arange(30) % 3 > 0  # ten held-out pictures of seen concepts
    return recipe.Material(pictures, texts, trained, unseen, ~unseen)


def test_heads_learn_what_pictures_and_texts_share(material, monkeypatch):
    monkeypatch.setattr(recipe, "STEPS", 40)
    model = recipe.fit(material)
    everything = torch.ones_like(material.trained)
    held = ~material.trained & ~material.unseen[:, None]
    seen = recipe.accuracy(model, material, material.drawn, held)
    assert (seen["candidates"], seen["pictures"]) == (30, 10)
    assert seen["top_1"] > 0.8
    unseen = recipe.accuracy(model, material, material.unseen, everything)
    assert (unseen["candidates"], unseen["pictures"]) == (10, 60)
    assert unseen["top_1"] > 0.5


def test_softened_pictures_are_blurred_each_by_its_own_amount():
    pictures = torch.zeros(3, 3, 32, 32)
    pictures[:, :, :, 16:] = 1
    found = recipe.soften(pictures, 0)
    assert found.shape == pictures.shape
    rows = found.mean(dim=(1, 2))
    assert (rows.sort(dim=1).values - rows).abs().max() < 0.02  # an edge stays an edge
    slopes = (rows[:, 16] - rows[:, 15]).tolist()
    assert len({round(slope, 2) for slope in slopes}) == 3
    assert max(slopes) < 0.99
    torch.testing.assert_close(found[..., :8], pictures[..., :8], rtol=0, atol=0.12)
    assert torch.equal(recipe.soften(pictures, 0), found)
