"""Systems of one's own, beside the built-in ones."""

from pathlib import Path

import pytest
import torch

from diffusemble.ensembles.block_level import EnsembleDenoiser
from diffusemble.evaluation.config import EvaluateConfig
from diffusemble.evaluation.specs import Chosen, choose_systems, open_ensemble
from tests.evaluation.tiny_zoo import save_tiny_ensemble

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("specs")
    save_tiny_ensemble(folder)
    return folder


@pytest.fixture(scope="module")
def ensemble(folder: Path) -> EnsembleDenoiser:
    return EnsembleDenoiser.from_pretrained(folder / "ensemble").eval()


def choose(ensemble: EnsembleDenoiser, *systems: object, **settings: object) -> Chosen:
    return choose_systems(EvaluateConfig(systems=systems, base="", **settings), ensemble)  # type: ignore[arg-type]


def test_another_ensemble_shares_the_experts_that_are_loaded(folder: Path, ensemble: EnsembleDenoiser) -> None:
    chosen = choose(ensemble, "expert-0", {"ensemble": str(folder / "ensemble"), "name": "mine", "title": "Mine"})
    one, mine = chosen.systems
    assert (one.name, mine.name, mine.title, mine.kind) == ("expert-0", "mine", "Mine", "ensemble")
    assert mine.pipeline.unet.denoisers[0] is ensemble.denoisers[0]
    assert set(chosen.stamps) == {"mine"}


def test_a_checkpoint_draws_as_it_does_alone(folder: Path, ensemble: EnsembleDenoiser) -> None:
    chosen = choose(ensemble, "expert-1", {"model": str(folder / "expert-1"), "name": "copy"})
    one, copy = chosen.systems
    noisy, times = torch.randn(1, 4, 8, 8), torch.tensor([300])
    assert torch.equal(one.predict(noisy, times, ["a"]), copy.predict(noisy, times, ["a"]))
    assert copy.kind == "control"


def test_an_aggregator_by_name_has_its_options(ensemble: EnsembleDenoiser) -> None:
    spec = {"aggregator": {"name": "mean", "options": {"points": "last"}}}
    average, mine = choose(ensemble, "noise-average", spec).systems
    assert mine.name == "mean-points-last"
    noisy, times = torch.randn(1, 4, 8, 8), torch.tensor([300])
    assert torch.equal(average.predict(noisy, times, ["a"]), mine.predict(noisy, times, ["a"]))


def test_an_untrained_aggregator_is_the_same_every_time(ensemble: EnsembleDenoiser) -> None:
    spec = {"aggregator": {"name": "sabw", "options": {"width": 64, "heads": 4, "layers": 1}}, "name": "fresh"}
    assert choose(ensemble, spec).stamps == choose(ensemble, spec).stamps


def test_experts_alone_have_everything_but_an_ensemble(folder: Path) -> None:
    config = EvaluateConfig(experts=(str(folder / "expert-0"), str(folder / "expert-1")), base="")
    found = choose_systems(config, open_ensemble(config, CPU, torch.float32))
    names = [system.name for system in found.systems]
    assert "ensemble" not in names
    assert {"expert-0", "weight-average", "noise-average", "block-average"} <= set(names)


def test_what_cannot_be_compared_is_explained(folder: Path, ensemble: EnsembleDenoiser) -> None:
    def refused(match: str, *systems: object) -> None:
        with pytest.raises(ValueError, match=match):
            choose(ensemble, *systems)

    refused(r"no system 'noise-averag' to evaluate \(did you mean 'noise-average'\?\)", "noise-averag")
    refused("Two systems are called 'expert-0'. Give one of them another name", "expert-0", "expert-0")
    refused("name 'ensemble' belongs to a built-in system", f"ensemble:{folder / 'ensemble'}")
    refused("zoo:topics is 3 models", "model:zoo:topics")
    refused("There is no file or folder nowhere.safetensors", "model:nowhere.safetensors")
    refused("no aggregator 'meen'", {"aggregator": "meen"})
