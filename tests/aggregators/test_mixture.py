"""What a mixture's choices are made of: the halves of guidance, and chance in training."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from aggregators.routing import IMAGES, MIXTURES, Counter, denoisers, routed
from diffusemble import EnsembleDenoiser, record_attention
from diffusemble.aggregators.base import Context
from diffusemble.aggregators.mixture import are_halves
from laws import EXPERTS, Call, a_call

TEXT_WITHOUT = 6  # seed of the other half's texts


def guided_call() -> Call:
    """The same latents twice, with different texts."""
    call, other = a_call(images=IMAGES), a_call(images=IMAGES, seed=TEXT_WITHOUT)
    texts = tuple(torch.cat(halves) for halves in zip(other.texts, call.texts, strict=True))
    return Call(torch.cat([call.sample] * 2), call.timestep.repeat(2), texts)


def choices(ensemble: EnsembleDenoiser, call: Call) -> Tensor:
    """Who was chosen first, ``[b]``."""
    with record_attention(ensemble) as maps:
        call.of(ensemble)
    return maps[0][0][:, :, 0, 0].argmax(dim=1)


@pytest.mark.parametrize("name", MIXTURES)
def test_halves_of_guidance_go_together_if_they_shall(name: str):
    call = guided_call()
    own, shared = (routed(name, denoisers(1, 2, 3), route_guidance=how) for how in ("own", "shared"))
    shared.aggregator.load_state_dict(own.aggregator.state_dict())
    apart, together = choices(own, call).view(2, IMAGES), choices(shared, call).view(2, IMAGES)
    assert not torch.equal(apart[0], apart[1]), "this test needs halves that would disagree"
    assert torch.equal(together[0], together[1])
    agreed = apart[0] == apart[1]
    assert torch.equal(together[0][agreed], apart[0][agreed])


def test_shared_means_the_mean_of_both_logits():
    call = guided_call()
    ensemble = routed("mixture-denoisers", denoisers(1, 2, 3), route_guidance="shared")
    logits = []
    ensemble.aggregator.at["0"].register_forward_hook(lambda _, args, out: logits.append(out.mean(dim=(2, 3))))
    found = choices(ensemble, call)
    assert torch.equal(found, logits[0].view(2, IMAGES, EXPERTS).mean(dim=0).argmax(dim=1).repeat(2))


def test_without_guidance_shared_changes_nothing():
    call = a_call(images=IMAGES)
    own, shared = (routed("mixture-denoisers", denoisers(1, 2, 3), route_guidance=how) for how in ("own", "shared"))
    shared.aggregator.load_state_dict(own.aggregator.state_dict())
    assert torch.equal(call.of(own), call.of(shared))


def test_one_sample_with_guidance_runs_as_one_batch():
    call = guided_call()
    call = Call(call.sample[::IMAGES], call.timestep[::IMAGES], tuple(text[::IMAGES] for text in call.texts))
    ensemble = routed("mixture-denoisers", denoisers(1, 2, 3), route_guidance="shared")
    with Counter(ensemble) as counter:
        call.of(ensemble)
    assert sorted(samples[0] for samples in counter.samples) == [0, 0, 2]


def test_halves_are_equal_latents():
    sample = torch.randn(2, 4, 3, 5)
    assert are_halves(torch.cat([sample, sample]))
    assert not are_halves(sample)
    assert not are_halves(torch.cat([sample, sample.flip(0)]))
    assert not are_halves(sample[:1])


@pytest.mark.parametrize("temperature", [0.3, 3.0])
def test_training_draws_every_expert_as_often_as_it_is_probable(temperature: float):
    ensemble = routed("mixture-denoisers", denoisers(1, 2, 3), temperature=temperature)
    router, call = ensemble.aggregator.train(), a_call(images=1)
    context = Context(call.texts[0], torch.zeros(1, 32, dtype=torch.float64), call.sample, call.timestep)
    logits = router.at["0"](call.sample, context).mean(dim=(2, 3))
    torch.manual_seed(1)
    router.at["0"].forward = lambda *_: logits[..., None, None].expand(4000, -1, 1, 1)
    gates = router(0, call.sample, context).gates
    shares = gates.mean(dim=0)
    torch.testing.assert_close(shares, logits[0].softmax(dim=0), rtol=0, atol=0.03)
    assert shares.min() > 0.01


@pytest.mark.parametrize("name", MIXTURES)
def test_an_untrained_mixture_has_no_preference(name: str):
    ensemble = routed(name, denoisers(1, 2, 3))
    for layer in ensemble.aggregator.at.values():
        torch.nn.init.zeros_(layer.conv_out.weight)
    assert choices(ensemble, a_call(images=IMAGES)).tolist() == [0] * IMAGES  # the first of equal ones
