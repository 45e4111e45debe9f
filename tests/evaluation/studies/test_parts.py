"""What single studies compute, against closed forms."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusemble.ensembles.block_level import EnsembleDenoiser
from diffusemble.evaluation.heldout import HeldOut, losses
from diffusemble.evaluation.studies.clock import step_of, time_calls
from diffusemble.evaluation.studies.copies import copies_of
from diffusemble.evaluation.studies.cost import enough, sd15
from diffusemble.evaluation.studies.lab import Lab
from diffusemble.evaluation.studies.quality import damaged, write_damaged
from diffusemble.evaluation.studies.run import run_study
from diffusemble.evaluation.studies.winners import Field, error_maps
from diffusemble.training.data import Picture
from diffusemble.training.schedule import process_of
from tests.evaluation.studies.quick import quick
from tests.tiny import as_expert, tiny_pipeline, tiny_scheduler, tiny_sdxl_pipeline, tiny_sdxl_unet

DIFFUSION = process_of(tiny_scheduler())


def test_error_maps_are_the_held_out_loss_before_its_mean() -> None:
    latents = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    held = HeldOut(("a", "b", "c"), ("red", "green", "blue"), latents)
    settings = held, DIFFUSION, (100, 700), 2, 0
    maps = error_maps(lambda noisy, times, prompts: 0.3 * noisy, *settings)
    assert maps.shape == (3, 2, 5, 6)
    expected = losses(lambda noisy, times, prompts: 0.3 * noisy, *settings)
    torch.testing.assert_close(maps.mean(dim=(2, 3)).double(), expected, atol=1e-6, rtol=0)


def test_winners_and_agreement() -> None:
    errors = np.random.default_rng(0).random((5, 2, 3, 4, 6))
    field = Field(errors, -errors)
    assert field.wins.sum(axis=2).min() == field.wins.sum(axis=2).max() == 1
    assert (field.agreement == 1).all()  # weights in the order of the errors always name the winner
    assert (Field(errors, errors).agreement == 0).all()


def test_damages() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    for kind in ("clean", "captions"):
        assert damaged(image, kind, 0).tobytes() == image.tobytes()
    assert np.asarray(damaged(image, "blur", 0)).std() < 0.8 * pixels.std()
    for kind in ("blur", "jpeg", "noise"):
        found = damaged(image, kind, 0)
        assert found.size == image.size
        assert found.tobytes() == damaged(image, kind, 0).tobytes() != image.tobytes()
    assert damaged(image, "noise", 1).tobytes() != damaged(image, "noise", 0).tobytes()


def test_damaged_pictures_are_written_once_with_all_captions(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "glass.png")
    read = (tmp_path / "glass.png").read_bytes
    pictures = [Picture(f"{number}", f"caption {number}", read) for number in range(12)]
    folder = write_damaged(pictures, "captions", tmp_path / "wrong", seed=0)
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    captions = [line.split('"text": "')[1].rstrip('"}') for line in lines]
    assert sorted(captions) == sorted(picture.caption for picture in pictures)
    assert captions != [picture.caption for picture in pictures]
    assert Image.open(folder / "000003.png").getpixel((0, 0)) == (255, 255, 255)  # transparency is paper
    (folder / "000003.png").unlink()
    assert write_damaged(pictures, "captions", folder, seed=0) == folder
    assert not (folder / "000003.png").exists()


def test_copies_share_weights_and_not_names() -> None:
    expert = as_expert(tiny_pipeline(), "poor")
    copies = copies_of(expert, 3)
    assert [copy.name for copy in copies] == ["poor 1", "poor 2", "poor 3"]
    assert all(copy.denoiser is expert.denoiser for copy in copies)
    more = enough([expert], 3)
    assert len({id(one.denoiser) for one in more}) == len({one.name for one in more}) == 3


def test_stable_diffusion_is_counted_with_and_without_attention() -> None:
    rows = sd15((3,), ("paper",))
    alone, paper = rows[0], rows[1]
    assert alone[4] == pytest.approx(2 * 803.3, rel=1e-4)  # both halves of guidance
    assert alone[4] - alone[5] == pytest.approx(2 * 677.2, rel=1e-4)  # type: ignore[operator]  # AFA's own figure
    assert paper[:4] == [
        "SABW `paper`",
        3,
        pytest.approx(3 * 859.521 + 45.132, abs=0.01),
        pytest.approx(45.132, abs=0.001),
    ]
    assert paper[6] == pytest.approx(3.26, abs=0.01)


def test_everything_takes_turns() -> None:
    calls: list[str] = []
    timed = time_calls({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3)
    assert calls == ["a", "b", "a", "b", "b", "a", "a", "b"]  # once each to warm up, then in turn
    assert all(one.seconds >= 0 for one in timed.values())


def test_a_step_of_sdxl_takes_its_added_conditions() -> None:
    experts = [as_expert(tiny_sdxl_pipeline(seed, unet=tiny_sdxl_unet(seed)), f"e{seed}") for seed in range(2)]
    with torch.no_grad():
        found = step_of(EnsembleDenoiser(experts).eval())()
    assert found.sample.shape == (2, 4, 8, 8)


def test_copies_need_two_different_experts(tiny: Path, tmp_path: Path) -> None:
    same = str(tiny / "expert-0")
    with pytest.raises(ValueError, match="The good expert and the poor one are both 'expert-0'"):
        run_study("copies", quick("copies", tiny, tmp_path, good=same, poor=same))


def test_distilled_ensembles_have_to_be_given(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none are given. Distil one, and give its folder: folders.lcm=PATH"):
        run_study("distilled", quick("distilled", tiny, tmp_path, folders={}))


def test_unknown_studies_are_refused_before_anything_is_loaded(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Unknown study 'luck'. Choose one of: experts, steps"):
        run_study("luck", quick("steps", tiny, tmp_path))
    code = "import sys, diffusemble.evaluation.studies.config, diffusemble.app.study; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_scores_of_other_pictures_lie_apart(tiny: Path, tmp_path: Path) -> None:
    first = Lab(quick("steps", tiny, tmp_path))
    shutil.copytree(tiny / "pictures", tmp_path / "pictures")
    table = tmp_path / "pictures/metadata.jsonl"
    table.write_text(table.read_text().replace("bear", "cat"))
    assert Lab(quick("steps", tiny, tmp_path, data=str(tmp_path / "pictures"))).store.folder != first.store.folder
