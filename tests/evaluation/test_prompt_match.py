"""The scorer's parts; how good the shipped heads are is in docs/results.md."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from diffusemble.evaluation.prompt_match import HEADS, PromptMatch, SentenceEncoder, published_accuracy


@pytest.fixture(scope="module")
def sentences() -> SentenceEncoder:
    return SentenceEncoder()


def test_sentences_are_unit_vectors_that_do_not_depend_on_padding(sentences):
    texts = ["a dog", "a very small puppy that sleeps in the grass", "an aeroplane"]
    found = sentences(texts)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(sentences(texts[:1]), found[:1], rtol=1e-4, atol=1e-5)
    assert found[0] @ found[1] > found[0] @ found[2] + 0.2


def test_score_is_the_scaled_cosine_and_rank_counts_better_texts():
    torch.manual_seed(0)
    heads = PromptMatch().eval()
    features, texts = torch.randn(4, 2560), torch.randn(6, 384)
    cosine = F.cosine_similarity(heads.image(features)[:, None], heads.text(texts)[None], dim=2)
    torch.testing.assert_close(heads.score(features, texts[:4]), heads.scale * cosine.diagonal(), rtol=1e-4, atol=1e-4)
    answers = torch.tensor([5, 0, 2, 1])
    expected = (cosine > cosine.gather(1, answers[:, None])).sum(dim=1)
    assert torch.equal(heads.rank(features, texts, answers), expected)
    own = texts.expand(4, 6, 384)
    assert torch.equal(heads.rank(features, own, answers), expected)


def test_heads_survive_the_disk(tmp_path: Path):
    heads = PromptMatch()
    heads.save(tmp_path / "heads.safetensors", {"seen": {"top_1": 0.5}})
    loaded = PromptMatch.load(tmp_path / "heads.safetensors")
    torch.testing.assert_close(loaded.image.weight, heads.image.weight, rtol=1e-3, atol=1e-4)
    assert published_accuracy(tmp_path / "heads.safetensors") == {"seen": {"top_1": 0.5}}
    assert (tmp_path / "heads.safetensors").stat().st_size < 500_000


def test_missing_heads_are_explained(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.safetensors. Reinstall the package, or train"):
        PromptMatch.load(tmp_path / "nowhere.safetensors")


def test_shipped_heads_say_how_good_they_are():
    report = published_accuracy()
    assert HEADS.stat().st_size < 500_000
    for found in report.values():
        assert found["top_1"] > 20 / found["candidates"]
    assert set(PromptMatch.load().state_dict()) == set(PromptMatch().state_dict())
