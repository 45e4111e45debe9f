"""What stands behind plus signs: written, refused, saved with ensembles, and read once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from adapter_files import kohya, shapes_of, write
from diffusemble import EnsembleDenoiser, load_experts
from diffusemble.experts.sources import Addition, Source, parse_source
from diffusemble.merging.models import find
from diffusemble.provenance import made_with
from ldm import save_ldm
from tiny import small_pipeline, tiny_vae


@pytest.fixture
def project(models: Path, tmp_path: Path) -> Path:
    """A folder with the experts ``rock`` and ``fern``, a LoRA ``style`` and a word ``mossy``."""
    for name in ("rock", "fern"):
        shutil.copytree(models / name, tmp_path / "project" / name)
    write(kohya(shapes_of(small_pipeline().unet, ["to_q"])), tmp_path / "project/style.safetensors")
    write({"emb_params": torch.ones(1, 32)}, tmp_path / "project/mossy.safetensors")
    return tmp_path / "project"


def test_sources_with_additions_read_back_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.safetensors", "b+c.safetensors", "style.safetensors"):
        (tmp_path / name).touch()
    (tmp_path / "zoo").mkdir()  # a folder of this name must not hide the zoo
    style = Addition("style.safetensors", 0.7)
    for text, source in {
        "a.safetensors+style.safetensors:0.7": Source("file", "a.safetensors", added=(style,)),
        "org/name@v1+style.safetensors:0.7": Source("hub", "org/name", "v1", added=(style,)),
        "zoo:base+style.safetensors:0.7": Source("zoo", "base", added=(style,)),
        "b+c.safetensors+b+c.safetensors:-1": Source(
            "file", "b+c.safetensors", added=(Addition("b+c.safetensors", -1.0),)
        ),
        "a.safetensors+b+c.safetensors:1e-05": Source(
            "file", "a.safetensors", added=(Addition("b+c.safetensors", 1e-5),)
        ),
        "zoo:base+vae=zoo:base": Source("zoo", "base", added=(Addition("zoo:base", role="vae"),)),
        "zoo:base+vae=a.safetensors": Source("zoo", "base", added=(Addition("a.safetensors", role="vae"),)),
    }.items():
        assert parse_source(text) == (source,)
        assert str(source) == text
    group = parse_source("zoo:topics+style.safetensors")
    assert [source.where for source in group] == ["people", "animals", "things"]
    assert all(source.added == (Addition("style.safetensors"),) for source in group)
    assert group[0].name == "people+style"


@pytest.mark.parametrize(
    ("ending", "message"),
    [
        ("+gone.safetensors:0.7", r"There is no .safetensors file gone.safetensors to add to .*rock \(looked in"),
        ("+rock", "There is no .safetensors file rock to add to"),
        ("+", "Behind a plus sign comes a file, as in .*style.safetensors:0.7; got ''"),
        ("+style.ckpt:0.7", r"style.ckpt is a pickle file, .*docs/loading.md"),
        ("+{style}:lots", r"The weight of .*style.safetensors must be a number, as in .*; got 'lots'"),
        ("+{style}:nan", "must be a number"),
        ("+vae={style}:0.5", "is a VAE, which has no weight; got 0.5"),
    ],
)
def test_wrong_additions_are_named(project: Path, ending: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_experts(str(project / "rock") + ending.format(style=project / "style.safetensors"))


def test_whole_models_are_not_added(models: Path, tmp_path: Path) -> None:
    file = save_ldm(small_pipeline(2), tmp_path / "opal.safetensors")
    with pytest.raises(
        ValueError, match=r"opal.safetensors cannot be added to .*rock: it is an SD 1.x checkpoint. Behind"
    ):
        load_experts(f"{models / 'rock'}+{file}")
    odd = write({"a.weight": torch.ones(2, 2), "b.weight": torch.ones(2, 2)}, tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match=r"what it is cannot be told from its names"):
        load_experts(f"{models / 'rock'}+{odd}")


def test_where_models_are_taken_as_they_are_stored_nothing_can_be_added(project: Path) -> None:
    source = f"{project / 'rock'}+{project / 'style.safetensors'}:0.5"
    with pytest.raises(
        ValueError, match=r"nothing can be added to it with a plus sign. Leave style.safetensors:0.5 out"
    ):
        find(parse_source(source)[0])
    with pytest.raises(ValueError, match="A base must be one diffusers folder, hub id or zoo model; got"):
        load_experts(project / "fern", base=source)


@torch.no_grad()
def prediction(ensemble: EnsembleDenoiser) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    sample, text = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 10, 32, generator=generator)
    return ensemble.eval()(sample, 7, text).sample


def test_an_ensemble_keeps_what_was_added_and_can_be_moved(project: Path, tmp_path: Path) -> None:
    sources = [
        f"{project / 'rock'}+{project / 'style.safetensors'}:0.7+{project / 'mossy.safetensors'}",
        project / "fern",
    ]
    tiny_vae(4).save_pretrained(project / "kl")
    ensemble = EnsembleDenoiser(load_experts(sources, vae=project / "kl"))
    ensemble.save_pretrained(project / "ensemble")
    before = prediction(ensemble)
    assert not torch.equal(before, prediction(EnsembleDenoiser(load_experts([project / "rock", project / "fern"]))))
    moved = project.rename(tmp_path / "elsewhere")
    again = EnsembleDenoiser.from_pretrained(moved / "ensemble")
    assert torch.equal(prediction(again), before)
    for mine, other in zip(again.experts, ensemble.experts, strict=True):
        assert mine.files == other.files
        assert mine.components["tokenizer"].get_vocab() == other.components["tokenizer"].get_vocab()
        weights = mine.components["vae"].state_dict()
        assert all(torch.equal(tensor, weights[key]) for key, tensor in tiny_vae(4).state_dict().items())
    elsewhere = EnsembleDenoiser.from_pretrained(moved / "ensemble", sources=[moved / "rock", moved / "fern"])
    assert torch.equal(prediction(elsewhere), before)
    recorded = made_with(again).experts[0]
    assert {"+style.safetensors:0.7", "+mossy.safetensors", "+vae=kl"} <= set(recorded.files)


def test_an_addition_that_changed_or_vanished_is_named(project: Path) -> None:
    ensemble = EnsembleDenoiser(load_experts(f"{project / 'rock'}+{project / 'style.safetensors'}:0.7"))
    ensemble.save_pretrained(project / "ensemble")
    write(kohya(shapes_of(small_pipeline().unet, ["to_q"]), seed=1), project / "style.safetensors")
    with pytest.raises(ValueError, match=r"Expert 'rock\+style' .*: \+style.safetensors:0.7 has changed since"):
        EnsembleDenoiser.from_pretrained(project / "ensemble")
    (project / "style.safetensors").unlink()
    with pytest.raises(
        ValueError, match=r"Expert 'rock\+style' .*There is no file .*style.safetensors, which was added"
    ):
        EnsembleDenoiser.from_pretrained(project / "ensemble")


def test_what_several_experts_take_from_one_place_is_read_once(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []
    real = AutoencoderKL.from_pretrained.__func__

    def counted(cls: Any, *args: Any, **options: Any) -> Any:
        opened.append(args)
        return real(cls, *args, **options)

    monkeypatch.setattr(AutoencoderKL, "from_pretrained", classmethod(counted))
    files = [
        save_ldm(small_pipeline(n), tmp_path / f"{n}.safetensors", without=["vae", "text_encoder"]) for n in (2, 3)
    ]
    one, two, rock, again = load_experts([*files, models / "rock", models / "rock"])
    assert len(opened) == 1
    for part in ("vae", "text_encoder"):
        assert one.components[part] is two.components[part] is rock.components[part] is again.components[part]
    assert rock.denoiser is not again.denoiser
