"""A call that is paused from within: order, results, errors, and what torch keeps per thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from diffusemble.latent.strand import Ended, Strand


def test_control_goes_back_and_forth() -> None:
    told: list[Any] = []

    def call(pause: Callable[[Any], Any]) -> str:
        told.append(pause("first"))
        told.append(pause("second"))
        return "done"

    strand = Strand(call)
    assert strand.resume() == "first"
    assert strand.resume(1) == "second"
    assert strand.resume(2) == Ended("done")
    assert told == [1, 2]


def test_an_error_is_raised_where_the_call_was_resumed() -> None:
    error = KeyError("here")

    def call(pause: Callable[[Any], Any]) -> None:
        pause(0)
        raise error

    strand = Strand(call)
    strand.resume()
    with pytest.raises(KeyError) as caught:
        strand.resume()
    assert caught.value is error


def test_a_stopped_call_cleans_up_and_is_gone() -> None:
    left = []

    def call(pause: Callable[[Any], Any]) -> None:
        try:
            while True:
                try:
                    pause(0)
                except Exception:  # what a pipeline might catch
                    left.append("caught")
        finally:
            left.append("cleaned")

    before = threading.active_count()
    strand = Strand(call)
    strand.stop()  # one that has not begun is nothing to stop
    strand.resume()
    assert threading.active_count() == before + 1
    strand.stop()
    strand.stop()
    assert left == ["cleaned"]
    assert threading.active_count() == before


def surroundings(pause: Callable[[Any], Any] | None = None) -> tuple[Any, ...]:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.zeros(1).device.type,
    )


@pytest.mark.parametrize(
    "around",
    [
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", dtype=torch.float16),
        lambda: torch.device("meta"),
        torch.enable_grad,
    ],
)
def test_torch_is_as_where_the_strand_was_made(around: Callable[[], Any]) -> None:
    with around():
        here, report = surroundings(), Strand(surroundings).resume()
    assert report.result == here


def test_modes_of_a_paused_call_stay_its_own() -> None:
    def call(pause: Callable[[Any], Any]) -> bool:
        with torch.no_grad():
            pause(0)
            return torch.is_grad_enabled()

    strand = Strand(call)
    strand.resume()
    assert torch.is_grad_enabled()
    assert strand.resume() == Ended(False)
