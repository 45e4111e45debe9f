"""The benchmark runs, and what it writes adds up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from forward import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "page.md").write_text("# Page\n")
    main(size="tiny", experts=2, repeats=2, output=folder / "out.json", table=folder / "page.md")
    return folder


def test_every_variant_is_measured(folder: Path):
    report = json.loads((folder / "out.json").read_text())
    variants = {variant["variant"]: variant for variant in report["variants"]}
    assert list(variants) == ["one U-Net", "2 in sequence", "ensemble, mean", "ensemble, SABW tiny"]
    one, sequence, mean, sabw = variants.values()
    assert sequence["ratio"] == 1
    assert all(len(variant["seconds_of_every_round"]) == 2 for variant in variants.values())
    assert 2 * one["flops"] == sequence["flops"] == mean["flops"] < sabw["flops"]
    assert 0 < one["attention_flops"] < one["flops"]
    assert 2 * one["parameters"] == mean["parameters"] < sabw["parameters"]
    assert sequence["weight_bytes"] == 4 * sequence["parameters"]


def test_a_table_is_added_to_the_page(folder: Path):
    lines = (folder / "page.md").read_text().splitlines()
    assert lines[0] == "# Page"
    assert lines[2].startswith("### tiny, 2 experts, batch 1, float32, ")
    assert lines[4].startswith("| variant | seconds | to N in sequence | weights |")
    assert [line.split("|")[1].strip() for line in lines[6:10]][1] == "2 in sequence"
