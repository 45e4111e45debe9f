"""Protocols by name, and prompts from whatever file a user has."""

import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from diffusemble.evaluation.config import EvaluateConfig, PicturesConfig, SystemConfig
from diffusemble.evaluation.prompts import Prompt, read_prompts
from diffusemble.evaluation.protocols import OWN, load_evaluation, names, protocol
from diffusemble.registry import METRICS

DRAWN = [name for name in names() if name not in OWN]


def config(file: Path, **settings: object) -> PicturesConfig:
    given = {"protocol": "drawbench", "ensemble": "zoo:topics", "metrics": ["prompt-match"], "prompts": str(file)}
    return PicturesConfig(**{**given, **settings})


@pytest.mark.parametrize("name", DRAWN)
def test_every_protocol_is_whole_and_says_what_to_get(name: str) -> None:
    run = load_evaluation(name, None, ["prompts=list.txt", "ensemble=runs/mine"])
    assert isinstance(run, PicturesConfig)
    assert (run.steps, run.guidance, run.scheduler, run.size) == (50, 7.5, "ddim", 256 if name == "coco" else 512)
    assert set(run.metrics) <= set(METRICS)
    with pytest.raises(ValueError, match=rf"protocol '{name}' needs data that do not ship .* prompts="):
        load_evaluation(name)
    assert protocol(name).title


def test_the_papers_settings_are_the_defaults() -> None:
    drawbench = load_evaluation("drawbench", None, ["prompts=x.csv", "ensemble=e"])
    assert isinstance(drawbench, PicturesConfig)
    assert (drawbench.images, drawbench.repeats, drawbench.category) == (4, 20, "Category")
    assert drawbench.metrics == ("aes", "pickscore", "hpsv2", "imagereward")
    assert len(protocol("journeydb").settings["metrics"]) == 8


def test_settings_come_from_the_protocol_then_the_file_then_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("protocol: drawbench\nprompts: list.csv\nexperts: [a, b]\nsteps: 20\nsize: 64\n")
    run = load_evaluation(None, file, ["steps=10"])
    assert isinstance(run, PicturesConfig)
    assert (run.protocol, run.steps, run.size, run.images, run.experts) == ("drawbench", 10, 64, 4, ("a", "b"))
    assert isinstance(load_evaluation(), EvaluateConfig)


def test_what_is_wrong_is_explained() -> None:
    with pytest.raises(ValueError, match=r"no protocol 'coc' \(did you mean 'coco'\?\). Choose one of: zoo, scenes"):
        load_evaluation("coc")
    with pytest.raises(ValueError, match="nobody is there to draw; give ensemble"):
        load_evaluation("coco", None, ["prompts=x.txt"])
    with pytest.raises(ValueError, match=r"no metric 'fidd' \(did you mean 'fid'\?\)"):
        load_evaluation("coco", None, ["prompts=x.txt", "ensemble=e", "metrics=[fidd]"])
    with pytest.raises(ValueError, match=r"there is no key 'promts'.*did you mean 'prompts'"):
        load_evaluation("coco", None, ["prompts=x.txt", "ensemble=e", "promts=y"])
    with pytest.raises(ValueError, match="exactly one of ensemble, model, aggregator; got ensemble and model"):
        SystemConfig(ensemble="a", model="b")


def test_systems_are_written_as_text_or_in_full() -> None:
    run = load_evaluation("zoo", None, ["systems=[people, 'ensemble:runs/a', {model: b.safetensors, title: B}]"])
    assert [one.model_dump(exclude_none=True) for one in run.systems] == [
        {"name": "people"},
        {"ensemble": "runs/a"},
        {"title": "B", "model": "b.safetensors"},
    ]


# -- prompts -----------------------------------------------------------------------------------------------------------

TEXTS = ("a cat", "two dogs, running", "ein Hund")


def write_all(folder: Path) -> dict[str, Path]:
    rows = [{"prompt": text, "kind": "x"} for text in TEXTS]
    files = {
        "list.txt": "".join(f"{text}\n\n" for text in TEXTS),
        "list.csv": "prompt,kind\n" + "".join(f'"{text}",x\n' for text in TEXTS),
        "list.tsv": "prompt\tkind\n" + "".join(f"{text}\tx\n" for text in TEXTS),
        "list.jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        "list.json": json.dumps(rows),
        "texts.json": json.dumps(TEXTS),
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "list.parquet")
    (folder / "pictures").mkdir()
    (folder / "pictures/metadata.jsonl").write_text(files["list.jsonl"])
    return {name: folder / name for name in (*files, "list.parquet", "pictures")}


def test_the_same_prompts_come_out_of_every_form(tmp_path: Path) -> None:
    for file in write_all(tmp_path).values():
        assert tuple(prompt.text for prompt in read_prompts(config(file))) == TEXTS, file
    some = read_prompts(config(tmp_path / "list.csv", category="kind", count=2))
    assert some == (Prompt("a cat", "x"), Prompt("two dogs, running", "x"))


def test_coco_gives_the_first_caption_of_every_picture(tmp_path: Path) -> None:
    notes = [(7, 2, "a late one"), (3, 2, " a dish "), (5, 1, "a bus")]
    file = tmp_path / "captions.json"
    annotations = [{"id": i, "image_id": image, "caption": text} for i, image, text in notes]
    images = [{"id": 1, "file_name": "1.jpg"}, {"id": 2, "file_name": "2.jpg"}]
    file.write_text(json.dumps({"annotations": annotations, "images": images}))
    found = read_prompts(config(file, column=("caption",), originals="val"))
    assert found == (Prompt("a bus", "", "1.jpg"), Prompt("a dish", "", "2.jpg"))


def test_prompts_that_cannot_be_read_are_explained(tmp_path: Path) -> None:
    files = write_all(tmp_path)

    def refused(name: str, text: str | None, match: str, **settings: object) -> None:
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=match):
            read_prompts(config(tmp_path / name, **settings))

    refused("none.txt", None, r"no file .*none.txt. Give prompts=FILE, with a .txt")
    refused("list.docx", "x", r"come from a .txt .*list.docx. Convert it")
    refused("empty.txt", "\n\n", "holds no prompts. Give a file with at least one")
    refused("other.csv", "words\nx\n", r"none of the columns prompt, text, caption; it has words. .*column=NAME")
    refused("list.csv", None, "no column 'topic' for the categories; it has prompt, kind", category="topic")
    refused("list.csv", None, "none of the columns file_name; it has prompt, kind", originals="folder")
    refused("bad.json", "{", "bad.json cannot be read: .*Export it again")
    refused("bad.parquet", "no table", "bad.parquet cannot be read")
    refused("hole.jsonl", '{"prompt": null}\n', "hole.jsonl, row 1: there is no 'prompt'. Fill it in")
    (tmp_path / "bare").mkdir()
    refused("bare", None, "has no metadata.jsonl, so its pictures have no prompts")
    assert files
