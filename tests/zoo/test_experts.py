from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from diffusemble.zoo import experts, folder, groups, names


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_groups_are_made_of_names() -> None:
    assert set(names()) == {"base", *(name for group in groups().values() for name in group)}
    assert groups()["topics"] == ("people", "animals", "things")


@pytest.mark.parametrize("name", names())
def test_every_model_opens_in_diffusers_and_draws(name: str, cache: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(folder(name, cache))
    pipe.set_progress_bar_config(disable=True)
    assert pipe.safety_checker is None
    drawn = pipe("strawberry, 3d style", num_inference_steps=2, output_type="pt").images
    assert drawn.shape == (1, 3, 64, 64)
    assert torch.isfinite(drawn).all()
    assert drawn.std() > 0.01


def test_weights_lie_in_float16(cache: Path) -> None:
    files = list(folder("things", cache).rglob("*.safetensors"))
    assert len(files) == 3
    for path in files:
        assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float16}


def test_experts_differ_from_the_base_in_the_denoiser_alone(cache: Path) -> None:
    base, expert = folder("base", cache), folder("animals", cache)
    for path in (p.relative_to(base) for p in base.rglob("*") if p.is_file()):
        assert ((base / path).read_bytes() == (expert / path).read_bytes()) == (path != experts.PARTS["unet"])


def test_a_second_call_finds_the_same_folder_untouched(cache: Path) -> None:
    first = folder("base", cache)
    stamp = (first / "model_index.json").stat().st_mtime_ns
    assert folder("base", cache) == first
    assert (first / "model_index.json").stat().st_mtime_ns == stamp


def test_two_machines_unpack_the_same_bytes(cache: Path, tmp_path: Path) -> None:
    first, second = folder("people", cache), folder("people", tmp_path)
    assert (first / experts.PARTS["unet"]).read_bytes() == (second / experts.PARTS["unet"]).read_bytes()


def test_an_interrupted_unpacking_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str, target: Path) -> None:
        target.mkdir()
        (target / "half").write_text("half")
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(experts, "unpack", broken)
        with pytest.raises(OSError, match="disk full"):
            folder("base", tmp_path)
    assert list((tmp_path / "zoo").iterdir()) == []
    assert (folder("base", tmp_path) / "model_index.json").exists()


def test_who_comes_second_keeps_the_first_ones_folder(tmp_path: Path) -> None:
    for name in ("built", "target"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    experts.move(tmp_path / "built", tmp_path / "target")
    assert (tmp_path / "target/file").read_text() == "target"


def test_a_failed_rename_is_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="absent"):
        experts.move(tmp_path / "absent", tmp_path / "target")


def test_other_weights_get_another_folder(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    assert experts.digest([tmp_path / "a"]) != experts.digest([tmp_path / "b"])


def test_the_cache_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFUSEMBLE_CACHE", str(tmp_path))
    assert folder("base").parent == tmp_path / "zoo"
    monkeypatch.delenv("DIFFUSEMBLE_CACHE")
    assert experts.cache_folder().name in {"diffusemble", "cache"}


def test_an_unknown_name_is_refused_with_the_list() -> None:
    with pytest.raises(
        ValueError, match="base, people, animals, things, shaded, flat, outlined, scenes; it has no 'plants'"
    ):
        folder("plants")
