from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from diffusemble.training.cache import Cache, Encoded, Rows, fingerprint


def test_rows_are_found_across_shards_of_any_length() -> None:
    whole = torch.arange(14).view(7, 2)
    rows = Rows([whole[:3], whole[:0], whole[3:4], whole[4:]])
    assert len(rows) == 7
    assert torch.equal(rows[[6, 0, 3, 3, 2]], whole[[6, 0, 3, 3, 2]])


def test_a_finished_cache_gives_back_tensors_and_notes(tmp_path: Path) -> None:
    cache = Cache(tmp_path, "latents", "a", "b")
    for number in range(2):
        assert not cache.has(number)
        cache.write(number, Encoded({"x": torch.full((3, 2), number)}, {"captions": [f"é{number}"]}))
        assert cache.has(number)
    assert not cache.complete
    cache.finish(2)
    again = Cache(tmp_path, "latents", "a", "b")
    assert again.complete
    shelf = again.open()
    assert shelf.rows["x"][[2, 3]].tolist() == [[0, 0], [1, 1]]
    assert [notes["captions"] for notes in shelf.notes] == [["é0"], ["é1"]]


def test_other_inputs_are_another_cache(tmp_path: Path) -> None:
    folders = {Cache(tmp_path, "x", *inputs).folder for inputs in (("a", "b"), ("ab",), ("ab", ""), ("b", "a"))}
    assert len(folders) == 4


def test_a_fingerprint_follows_every_weight_and_type() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    before = fingerprint([layer])
    assert fingerprint([layer]) == before
    assert fingerprint([nn.Linear(3, 2)]) != before
    assert fingerprint([layer, layer]) != before
    with torch.no_grad():
        layer.bias[1] += 1e-6
    changed = fingerprint([layer])
    assert changed != before
    assert fingerprint([layer.bfloat16()]) != changed


@pytest.mark.parametrize("number", [0, 1])
def test_a_shard_that_was_cut_short_is_not_there(tmp_path: Path, number: int) -> None:
    cache = Cache(tmp_path, "x", "a")
    cache.write(0, Encoded({"x": torch.zeros(2)}, {}))
    (cache.folder / f".{1:05d}.safetensors.partial").write_bytes(b"half")
    assert cache.has(number) == (number == 0)
