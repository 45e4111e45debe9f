from __future__ import annotations

import logging
import platform
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageChops

import diffusemble
from diffusemble import EnsembleDenoiser, load_experts
from diffusemble.aggregators.sabw import SABW
from diffusemble.comparison import MEAN, OUTPUT_MEAN, TOGETHER, title_of, ways_of
from diffusemble.config.generate import GenerateConfig
from diffusemble.ensembles.assembly import assemble
from diffusemble.generation import Pictures, build_ensemble, generate
from diffusemble.pictures.metadata import read_document
from diffusemble.pictures.sheet import GAP, MARGIN, cell, enlarge
from diffusemble.provenance import differences, made_with
from diffusemble.settings import load_config


def config_of(**settings: Any) -> GenerateConfig:
    return GenerateConfig(**{"prompts": ("a cat", "two dogs"), "steps": 2, "device": "cpu", **settings})


@pytest.fixture(scope="module")
def run(trained: str) -> Pictures:
    """Two prompts, compared, with maps of one point."""
    return generate(config_of(ensemble=trained, compare=True, attention={"points": "mid", "steps": 2}))


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("diffusemble")]


def test_a_saved_run_draws_the_same_bits_again(run: Pictures, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saved = run.save(tmp_path)
    documents = [read_document(file) for file in (*saved.pictures, *saved.attention, saved.sheet) if file]
    assert set(documents) == {saved.settings.read_text(encoding="utf-8")}
    again = generate(load_config(GenerateConfig, saved.pictures[1]))
    assert again.config == run.config
    assert again.sheet is not None
    assert run.sheet is not None
    assert again.sheet.tobytes() == run.sheet.tobytes()
    for one, other in zip(again.pictures, run.pictures, strict=True):
        assert one.image.tobytes() == other.image.tobytes()
        assert torch.equal(one.maps[0].maps[0], other.maps[0].maps[0])
    assert not messages(caplog)


def test_every_file_of_a_run_is_written_under_one_new_name(run: Pictures, tmp_path: Path) -> None:
    for number in (1, 2):
        saved = run.save(tmp_path)
        stem = f"{number:04d}-a-cat"
        assert [file.name for file in saved.pictures] == [f"{stem}-{index:02d}.png" for index in (1, 2)]
        assert [file.name for file in saved.attention] == [f"{stem}-{index:02d}-attention.png" for index in (1, 2)]
        assert saved.sheet == tmp_path / f"{stem}-compare.png"
        assert saved.settings == tmp_path / f"{stem}.yaml"
    assert len(list(tmp_path.iterdir())) == 12
    with Image.open(saved.pictures[1]) as stored:
        stored.load()
        assert (stored.info["prompt"], stored.info["seed"]) == ("two dogs", "0")
        assert stored.tobytes() == run.pictures[1].image.tobytes()


def test_the_columns_of_the_sheet_are_what_each_draws_alone(
    run: Pictures, trained: str, folders: tuple[str, ...]
) -> None:
    ways = [{"experts": folders[0]}, {"experts": folders[1]}, {"experts": folders, "aggregator": "mean"}]
    ways.append({"ensemble": trained})
    assert run.sheet is not None
    for column, way in enumerate(ways):
        alone = generate(config_of(**way))
        for row, picture in enumerate(alone.pictures):
            large = enlarge(picture.image)
            left, top = cell(row, column, large.size)
            found = run.sheet.crop((left, top, left + large.width, top + large.height))
            assert ImageChops.difference(found, large).getbbox() is None, (column, row)


def test_a_mean_is_not_compared_with_itself(folders: tuple[str, ...]) -> None:
    def columns(**settings: Any) -> list[str]:
        seen: list[str] = []
        generate(config_of(**settings, prompts="x", compare=True, steps=1), lambda share, what: seen.append(what))
        return list(dict.fromkeys(seen))

    assert columns(experts=folders) == ["loading experts", "rock", "fern", MEAN]
    only_last = {"name": "mean", "options": {"points": "last"}}
    assert columns(experts=folders, aggregator=only_last) == ["loading experts", "rock", "fern", MEAN, OUTPUT_MEAN]
    assert columns(experts=folders[0]) == ["loading experts", "rock"]


def test_a_mean_is_called_a_mean(folders: tuple[str, ...]) -> None:
    experts = load_experts(folders)

    def titled(level: str, name: str, **options: Any) -> tuple[str, list[str]]:
        ensemble = assemble(experts, level, name, options)
        return title_of(ensemble), [*ways_of(ensemble)][2:]

    assert titled("output", "mean") == (OUTPUT_MEAN, [TOGETHER])
    assert titled("output", "mean", weights=(1, 3)) == ("weighted mean", [OUTPUT_MEAN, TOGETHER])
    assert titled("block", "mean", weights=(1, 3)) == ("weighted mean", [MEAN, TOGETHER])
    last = len(EnsembleDenoiser(experts).points) - 1
    assert titled("block", "mean", points=(3, last)) == ("mean at 2 points", [MEAN, TOGETHER])
    assert titled("block", "magicfusion") == (TOGETHER, [MEAN, TOGETHER])


@pytest.mark.parametrize("name", [TOGETHER, MEAN, "weighted mean"])
def test_an_expert_called_like_another_column_is_told_apart(folders: tuple[str, ...], name: str) -> None:
    experts = load_experts(folders, names=("rock", name))
    ways = ways_of(assemble(experts, "block", "mean", {"weights": (1, 3)}))
    assert [*ways] == ["rock", f"{name} (expert 2)", MEAN, TOGETHER]
    assert ways[f"{name} (expert 2)"].experts == experts[1:]
    assert len(ways[TOGETHER].experts) == 2


def test_the_configuration_says_what_it_was_drawn_with(run: Pictures, folders: tuple[str, ...]) -> None:
    made = run.config.made_with
    assert made is not None
    assert made.versions["torch"] == torch.__version__
    assert made.versions["diffusemble"] == diffusemble.__version__
    assert made.versions["python"] == platform.python_version()
    assert made.device == "cpu float32"
    assert made.aggregator.startswith("sabw ")
    for expert, loaded in zip(made.experts, load_experts(folders), strict=True):
        assert dict(expert.files) == dict(loaded.files)
        assert expert.files


def test_what_has_changed_since_is_said(
    run: Pictures, folders: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    made = run.config.made_with
    assert made is not None
    older = made.model_copy(update={"versions": {**made.versions, "torch": "1.0"}})
    with caplog.at_level(logging.WARNING):
        generate(run.config.model_copy(update={"made_with": older, "compare": False, "prompts": ("x",), "steps": 2}))
    assert f"torch was 1.0, now {torch.__version__}" in caplog.text
    mean = made_with(build_ensemble(config_of(experts=folders)))
    assert differences(made, made) == ()
    assert differences(made, mean) == (f"the aggregator was {made.aggregator}, now {mean.aggregator}",)
    file = next(iter(made.experts[0].files))
    changed = made.experts[0].model_copy(update={"files": {**made.experts[0].files, file: "0"}})
    (found,) = differences(mean, mean.model_copy(update={"experts": (changed, mean.experts[1])}))
    assert found == f"expert 'rock': {file} has changed"
    (found,) = differences(mean, made_with(build_ensemble(config_of(experts=folders[0]))))[-1:]
    assert found == "the experts were rock, fern, now rock"


def test_a_prompt_that_is_cut_off_is_said(folders: tuple[str, ...], caplog: pytest.LogCaptureFixture) -> None:
    generate(config_of(experts=folders[0], prompts=("abcdefghijklmnopqr",), steps=1))
    (message,) = messages(caplog)
    assert "'abcdefghijklmnopqr' is too long; the experts do not see its end: 'opqr'" in message


def test_aggregator_and_type_are_those_of_the_configuration(folders: tuple[str, ...], trained: str) -> None:
    sabw = build_ensemble(config_of(experts=folders, aggregator={"name": "sabw", "options": {"preset": "tiny"}}))
    assert isinstance(sabw.aggregator, SABW)
    assert sabw.aggregator.options.width == 16
    half = build_ensemble(config_of(ensemble=trained, dtype="bfloat16"))
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert not half.training


def test_weights_that_nobody_trained_are_told_and_are_the_same_again(
    folders: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    fresh = generate(config_of(prompts="a cat", experts=folders, aggregator="mixture-blocks"))
    assert messages(caplog)[0].startswith("The weights of aggregator 'mixture-blocks' are fresh: it was not")
    caplog.clear()
    again = generate(fresh.config)
    assert len(messages(caplog)) == 1  # and nothing has changed
    assert again.pictures[0].image.tobytes() == fresh.pictures[0].image.tobytes()


def test_magicfusion_measures_with_the_guidance_of_the_drawing(folders: tuple[str, ...]) -> None:
    def guidance(**settings: Any) -> float:
        return build_ensemble(config_of(experts=folders, **settings)).aggregator.options.guidance

    assert guidance(aggregator="magicfusion", guidance=3.5) == 3.5
    assert guidance(aggregator={"name": "magicfusion", "options": {"guidance": 9}}, guidance=3.5) == 9
    with pytest.raises(ValueError, match=r"'magicfusion', option 'guidance': .* guidance scale above 1; got 1\."):
        guidance(aggregator="magicfusion", guidance=1)


def test_magicfusion_draws_with_its_maps(folders: tuple[str, ...]) -> None:
    run = generate(config_of(experts=folders, aggregator="magicfusion", attention={"steps": 2}))
    for picture in run.pictures:
        (point,) = picture.maps
        assert point.name == "up.1.layer1"
        assert set(point.maps[0].unique().tolist()) == {0.0, 1.0}
    assert run.pictures[0].image.tobytes() != generate(config_of(experts=folders)).pictures[0].image.tobytes()


def test_maps_that_were_not_asked_for_are_named(folders: tuple[str, ...]) -> None:
    pictures = generate(config_of(experts=folders[0], steps=1, prompts="x"))
    with pytest.raises(ValueError, match=r"drawn without maps. Set attention: true"):
        pictures.attention()


def test_the_public_name_is_the_function() -> None:
    assert diffusemble.generate is generate
    assert diffusemble.GenerateConfig is GenerateConfig


def test_a_group_of_the_zoo_brings_its_trained_aggregator(
    trained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffusemble.zoo.ensembles.WEIGHTS", tmp_path)
    whole = build_ensemble(config_of(ensemble=trained))
    whole.save_pretrained(tmp_path / "ensembles/topics")
    for settings in ({}, {"experts": "zoo:topics"}, {"ensemble": "zoo:topics"}):
        found = build_ensemble(config_of(**settings))
        assert made_with(found).aggregator == made_with(whole).aggregator


@pytest.mark.slow
def test_the_demo_compares_the_zoo_with_its_ensemble(tmp_path: Path) -> None:
    config = load_config(GenerateConfig, Path(__file__).parents[2] / "examples/demo.yaml", ["steps=2"])
    pictures = generate(config)
    assert pictures.experts == ("people", "animals", "things")
    assert pictures.config.made_with is not None
    assert pictures.config.made_with.aggregator.startswith("sabw")
    assert pictures.sheet is not None
    beyond, _ = cell(0, 5, (192, 192))  # where a sixth column would begin
    assert pictures.sheet.width == beyond - GAP + MARGIN
    assert pictures.save(tmp_path).sheet in list(tmp_path.iterdir())
