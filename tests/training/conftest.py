from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from diffusemble.experts.expert import Expert
from diffusemble.training.train import train
from training.small import small_config, small_experts, write_pictures


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def experts() -> tuple[Expert, ...]:
    return small_experts()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training") / "pictures"
    write_pictures(folder)
    return folder


@pytest.fixture(scope="session")
def whole(experts: tuple[Expert, ...], pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody interrupted."""
    return train(small_config(pictures, tmp_path_factory.mktemp("runs") / "whole"), experts)
