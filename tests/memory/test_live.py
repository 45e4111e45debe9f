"""What is counted on the meta device is what would be held."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from diffusemble import EnsembleDenoiser, build_aggregator
from diffusemble.blocks.base import Call
from diffusemble.blocks.example import example
from diffusemble.memory.live import LiveBytes, peak_bytes
from diffusemble.memory.networks import networks_of
from diffusemble.memory.working import measure_working
from memory_cases import FAMILIES, a_call, an_ensemble, predict
from tiny_dit import tiny_sd3


def test_a_chain_holds_two_at_a_time() -> None:
    x = torch.zeros(10, 100, device="meta")  # 4000 bytes

    def chain() -> None:
        y = x + 1
        for _ in range(5):
            y = y + 1

    assert peak_bytes(chain) == 2 * 4000


def test_views_and_what_was_there_before_count_nothing() -> None:
    x = torch.zeros(10, 100, device="meta")
    assert peak_bytes(lambda: x.view(100, 10).t().add_(1)) == 0


def test_attention_holds_no_map() -> None:
    query = torch.zeros(2, 4, 1000, 8, device="meta")
    assert peak_bytes(lambda: functional.scaled_dot_product_attention(query, query, query)) == 4 * query.numel()


def test_the_meta_device_counts_what_a_cpu_does() -> None:
    ensemble = an_ensemble("sd3", n=2)
    call = a_call(ensemble)
    with LiveBytes() as live:
        predict(ensemble, call)
    call = {name: value.to("meta") for name, value in call.items()}
    ensemble.to("meta")
    found = peak_bytes(lambda: ensemble(**call))
    assert found == pytest.approx(live.peak, rel=0.2)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_an_example(family: str) -> None:
    ensemble = an_ensemble(family, n=1)
    call = example(ensemble.denoisers[0], (8, 8), 2)
    assert predict_one(ensemble, call).isfinite().all()


def predict_one(ensemble: EnsembleDenoiser, call: Call) -> torch.Tensor:
    """What one expert makes of its own call."""
    with torch.no_grad():
        return ensemble.predict(call, [call.inputs])


def test_larger_pictures_take_more() -> None:
    networks = networks_of(an_ensemble("sd3", "mean", n=1))
    small, large = (measure_working(networks, (side, side), 1, side > 8).denoise for side in (8, 16))
    assert 0 < 1.5 * small < large


def test_a_router_is_reckoned_as_if_all_took_part() -> None:
    denoisers = [tiny_sd3(seed) for seed in range(2)]
    router, mean = (
        EnsembleDenoiser(denoisers, build_aggregator(name, denoisers, **options)).eval()
        for name, options in (("mixture-blocks", {"preset": "tiny"}), ("mean", {}))
    )
    assert measure_working(networks_of(router), (8, 8), 1, False) == measure_working(
        networks_of(mean), (8, 8), 1, False
    )
