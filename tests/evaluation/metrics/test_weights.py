"""Finding and reading published weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from diffusemble.evaluation.metrics.weights import Published, fill, read_tensors

FOLDER = Published("some-clip", "somebody/some-clip")
FILE = Published("reward.pt", "somebody/reward", "reward.pt")


def cached(home: Path, repository: str, file: str) -> Path:
    """A file as the hub's cache keeps it."""
    place = home / f"models--{repository.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs/main").write_text("abc")
    (place / "snapshots/abc").mkdir(parents=True)
    (place / "snapshots/abc" / file).write_text("{}")
    return place / "snapshots/abc" / file


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home))
    return home


def test_the_users_folder_comes_first_and_the_hubs_cache_second(tmp_path: Path, hub: Path):
    config, reward = cached(hub, "somebody/some-clip", "config.json"), cached(hub, "somebody/reward", "reward.pt")
    assert FOLDER.find(tmp_path / "mine") == config.parent
    assert FILE.find(None) == reward
    own = tmp_path / "mine/some-clip"
    own.mkdir(parents=True)
    assert FOLDER.find(tmp_path / "mine") == config.parent  # an empty folder is no model
    (own / "config.json").write_text("{}")
    assert FOLDER.find(tmp_path / "mine") == own
    (tmp_path / "mine/reward.pt").write_text("")
    assert FILE.find(tmp_path / "mine") == tmp_path / "mine/reward.pt"


def test_what_is_nowhere_is_explained(tmp_path: Path, hub: Path):
    with pytest.raises(FileNotFoundError, match=rf"some-clip.*hf download somebody/some-clip.*local-dir {tmp_path}/"):
        FOLDER.find(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"searched: the hub's cache.*hf download somebody/reward reward.pt"):
        FILE.find(None)


def test_tensors_are_read_from_every_kind_of_file(tmp_path: Path):
    tensors = {"a": torch.arange(3.0), "b": torch.ones(2, 2)}
    save_file(tensors, tmp_path / "x.safetensors")
    torch.save(tensors, tmp_path / "x.pt")
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "y.pt")
    for file in ("x.safetensors", "x.pt", "y.pt"):
        found = read_tensors(tmp_path / file)
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[key], tensors[key]) for key in tensors)


def test_checkpoints_that_hold_code_are_not_run(tmp_path: Path):
    torch.save({"model": nn.Linear(2, 2)}, tmp_path / "pickled.pt")
    with pytest.raises(ValueError, match=r"Only tensors are read.*pickled.pt.*convert it to safetensors"):
        read_tensors(tmp_path / "pickled.pt")
    (tmp_path / "page.pt").write_text("<html>not found</html>")
    with pytest.raises(ValueError, match=r"Only tensors are read.*page.pt.*Download it again"):
        read_tensors(tmp_path / "page.pt")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"should hold named tensors; it holds list"):
        read_tensors(tmp_path / "list.pt")


def test_weights_must_fit_exactly_but_for_counters():
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    given = {key: torch.full_like(value, 2.0) for key, value in module.state_dict().items() if "num_b" not in key}
    fill(module, {**given, "position_ids": torch.zeros(1)}, "file.pt")
    assert module[0].weight.eq(2).all()
    wrong = {**given, "0.weight": torch.zeros(2, 4), "new": torch.zeros(1)}
    del wrong["0.bias"]
    with pytest.raises(ValueError, match=r"file.pt does not fit Sequential: 0.bias is missing; new is left over; 0.we"):
        fill(module, wrong, "file.pt")
