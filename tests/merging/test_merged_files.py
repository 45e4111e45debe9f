"""Single files in, single file out."""

import hashlib
import json
import resource
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from diffusemble.merging.config import MergeConfig
from diffusemble.merging.merge import HEADER_KEY, Merged, merge
from tests.merging.checkpoints import IN00, M00, OUT11, PLACES, SHAPES, TEXT, checkpoint, weights


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    return checkpoint(tmp_path / "a.safetensors", 1), checkpoint(tmp_path / "b.safetensors", 2)


def merged(tmp_path: Path, *experts: str, **settings: object) -> tuple[dict[str, torch.Tensor], Merged]:
    result = merge(MergeConfig(experts=experts, out=str(tmp_path / "out.safetensors"), **settings))
    return load_file(result.out), result


def test_all_of_the_first_is_the_first_bit_for_bit(files, tmp_path):
    ours, result = merged(tmp_path, *files, options={"shares": [1, 0]})
    first = load_file(files[0])
    assert list(ours) == list(first)
    for key, tensor in first.items():
        assert ours[key].dtype == tensor.dtype
        assert torch.equal(ours[key], tensor)
    assert result == Merged(tmp_path / "out.safetensors", files, ("",), 27)


def test_fractions_are_merged_and_counts_are_the_firsts(files, tmp_path):
    ours, _ = merged(tmp_path, *files, options={"shares": [1, 3]})
    a, b = weights(1), weights(2)
    for key in SHAPES:
        torch.testing.assert_close(ours[key], 0.25 * a[key] + 0.75 * b[key])
    assert torch.equal(ours[PLACES], a[PLACES])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_number_types_are_the_firsts(dtype, files, tmp_path):
    halves = {key: t.to(dtype) for key, t in weights(3).items() if key != PLACES}
    first = checkpoint(tmp_path / "half.safetensors", 3, halves)
    ours, _ = merged(tmp_path, first, files[0])
    for key in SHAPES:
        assert ours[key].dtype == dtype
        mean = (halves[key].double() + weights(1)[key].double()) / 2
        torch.testing.assert_close(ours[key].double(), mean.to(dtype).double(), rtol=0, atol=0)


def test_another_number_type_can_be_chosen(files, tmp_path):
    ours, _ = merged(tmp_path, *files, dtype="bfloat16")
    assert {key: t.dtype for key, t in ours.items()} == dict.fromkeys(SHAPES, torch.bfloat16) | {PLACES: torch.int64}


def test_values_that_the_number_type_cannot_hold_are_named(files, tmp_path):
    big = checkpoint(tmp_path / "big.safetensors", 5, {M00: torch.full((5,), 1e6)})
    with pytest.raises(ValueError, match=r"in_layers.0.bias' has values up to 5e\+05 .*torch.float16 cannot hold"):
        merged(tmp_path, big, files[0], dtype="float16")
    assert not (tmp_path / "out.safetensors").exists()


def test_every_method_writes_a_file(files, tmp_path):
    base = checkpoint(tmp_path / "base.safetensors", 9)
    for name in ("cosine", "dare", "ties"):
        settings = {"method": name, **({} if name == "cosine" else {"base": base})}
        out = str(tmp_path / f"{name}.safetensors")
        merge(MergeConfig(experts=files, out=out, **settings))
        assert all(torch.isfinite(tensor).all() for tensor in load_file(out).values())


def test_blocks_have_their_own_shares(files, tmp_path):
    slots = [f"IN{i:02d}" for i in range(12)] + ["M00"] + [f"OUT{i:02d}" for i in range(12)]
    second = dict.fromkeys(slots, 0.0) | {"BASE": 0.5, "M00": 1.0, "OUT11": 0.25}
    ours, _ = merged(tmp_path, *files, blocks=[second])
    a, b = weights(1), weights(2)
    assert torch.equal(ours[IN00], a[IN00])
    assert torch.equal(ours[M00], b[M00])
    torch.testing.assert_close(ours[OUT11], 0.75 * a[OUT11] + 0.25 * b[OUT11])
    torch.testing.assert_close(ours[TEXT], (a[TEXT] + b[TEXT]) / 2)
    (tmp_path / "out.safetensors").unlink()
    first = {slot: 1 - weight for slot, weight in second.items()}
    for key, tensor in merged(tmp_path, *files, blocks=[first, second])[0].items():
        torch.testing.assert_close(tensor, ours[key])


def test_blocks_have_their_own_ratios(files, tmp_path):
    base = checkpoint(tmp_path / "base.safetensors", 9)
    numbers = [0.5] + [0.0] * 12 + [1.0] + [0.0] * 12
    ours, _ = merged(tmp_path, *files, method="add-difference", base=base, blocks=numbers)
    a, b, c = weights(1), weights(2), weights(9)
    assert torch.equal(ours[IN00], a[IN00])
    torch.testing.assert_close(ours[M00], a[M00] + b[M00] - c[M00])
    torch.testing.assert_close(ours[TEXT], a[TEXT] + (b[TEXT] - c[TEXT]) / 2)


def test_block_weights_that_do_not_fit_are_refused(files, tmp_path):
    with pytest.raises(ValueError, match="Soup takes no block weights"):
        merged(tmp_path, *files, method="soup", blocks=["x"])
    with pytest.raises(ValueError, match="Block weights for Weighted of 2 experts are 1 or 2 sets; got 3"):
        merged(tmp_path, *files, blocks=["x", "y", "z"])
    with pytest.raises(ValueError, match="are 1 sets; got 2"):
        merged(tmp_path, *files, method="cosine", blocks=["x", "y"])


def test_the_recipe_and_the_inputs_are_in_the_header(files, tmp_path):
    merged(tmp_path, *files, options={"shares": [1, 3]})
    with safe_open(tmp_path / "out.safetensors", "pt") as opened:
        metadata = opened.metadata()
    record = json.loads(metadata[HEADER_KEY])
    assert metadata["format"] == "pt"
    assert record["recipe"]["options"] == {"shares": [1, 3]}
    assert record["recipe"]["experts"] == list(files)
    for given, file in zip(record["inputs"], files, strict=True):
        digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        assert given == {"role": "expert", "source": file, "sha256": {"weights": digest}}
    recipe = MergeConfig(**record["recipe"], out=str(tmp_path / "again.safetensors"))
    again = load_file(merge(recipe).out)
    for key, tensor in load_file(tmp_path / "out.safetensors").items():
        assert torch.equal(again[key], tensor)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {M00: None},
            r"c.safetensors lacks 'model.diffusion_model.middle_block.0.in_layers.0.bias', .*\(5,\) in .*a.saf",
        ),
        ({"v_pred": torch.zeros(2)}, r"a.safetensors lacks 'v_pred', which has the shape \(2,\) in .*c.safetensors"),
        (
            {OUT11: torch.zeros(2, 7)},
            r"layers.3.weight' is \(2, 7\) in .*c.safetensors and \(7, 2\) in .*a.safetensors",
        ),
        (
            dict.fromkeys([*SHAPES, PLACES]) | {"conv_in.bias": torch.zeros(1), "up_blocks.0.bias": torch.zeros(1)},
            r"a.safetensors is an SD 1.x checkpoint in the original layout, .*c.safetensors is an SD 1.x checkpoint in "
            "the diffusers layout. Use full models",
        ),
        (
            dict.fromkeys([*SHAPES, PLACES]) | {"decoder.conv_in.bias": torch.zeros(1)},
            r"a.safetensors is an SD 1.x checkpoint in the original layout, .*c.safetensors is a VAE. Use full models",
        ),
        ({"x": torch.zeros(1), M00: None}, r"in .*a.safetensors \(and 1 more differ\). Use full models"),
    ],
)
def test_tensors_that_do_not_fit_are_named(changes, message, files, tmp_path):
    other = checkpoint(tmp_path / "c.safetensors", 3, changes)
    with pytest.raises(ValueError, match=message):
        merged(tmp_path, *files, other)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors", "c.safetensors"]


def test_pickles_and_damaged_files_are_refused(files, tmp_path):
    (tmp_path / "c.ckpt").write_bytes(b"\x80\x04")
    with pytest.raises(ValueError, match=r"c.ckpt is a pickle.*Look for the .safetensors version"):
        merged(tmp_path, files[0], str(tmp_path / "c.ckpt"))
    whole = Path(files[1]).read_bytes()
    for damaged in (whole[:-7], whole[:40], b"", b"\xff" * 99):
        (tmp_path / "c.safetensors").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"c.safetensors is (cut off|damaged|empty)"):
            merged(tmp_path, files[0], str(tmp_path / "c.safetensors"))


def test_nothing_is_overwritten_and_names_fit_the_layout(files, tmp_path):
    with pytest.raises(ValueError, match="exists already, and nothing is overwritten"):
        merge(MergeConfig(experts=files, out=files[0]))
    with pytest.raises(ValueError, match=r"out is a file or folder that does not exist yet; .*a\.safetensors is no"):
        merge(MergeConfig(experts="absent", out=f"{files[0]}/out"))
    with pytest.raises(ValueError, match=r"a file, NAME.safetensors; got .*out.ckpt"):
        merge(MergeConfig(experts=files, out=str(tmp_path / "out.ckpt")))


def test_an_interrupted_merge_leaves_nothing(files, tmp_path):
    def interrupt(share: float, what: str) -> None:
        if share > 0.3:
            raise KeyboardInterrupt

    left = tmp_path / ".out.safetensors.4321.partial"  # by a process that was killed
    left.write_bytes(b"half")
    others = tmp_path / ".out.safetensors.old.4321.partial"  # of another result
    others.write_bytes(b"half")
    with pytest.raises(KeyboardInterrupt):
        merge(MergeConfig(experts=files, out=str(tmp_path / "out.safetensors")), interrupt)
    assert sorted(file.name for file in tmp_path.iterdir()) == [others.name, "a.safetensors", "b.safetensors"]


def test_a_full_disk_leaves_nothing(tmp_path):
    files = [checkpoint(tmp_path / f"{name}.safetensors", 0, {M00: torch.zeros(800_000)}) for name in "ab"]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, before[1]))
    try:
        with pytest.raises(
            OSError, match=r"Could not write .*out.safetensors .*nothing is left of it. Free some space"
        ):
            merge(MergeConfig(experts=files, out=str(tmp_path / "out.safetensors")))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


def test_progress_grows_to_one(files, tmp_path):
    told: list[tuple[float, str]] = []
    merge(
        MergeConfig(experts=files, out=str(tmp_path / "o.safetensors")), lambda share, what: told.append((share, what))
    )
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] < 1
    assert {what for _, what in told} == {f"reading {files[0]}", f"reading {files[1]}", "comparing", "merging"}


def test_a_type_of_numbers_that_cannot_be_merged_is_named(files, tmp_path):
    odd = {key: tensor for key, tensor in weights(1).items() if key != PLACES}
    save_file({**odd, PLACES: torch.zeros(1, 3, dtype=torch.complex64)}, tmp_path / "c.safetensors")
    with pytest.raises(ValueError, match=r"c.safetensors: .*position_ids' holds numbers of type C64"):
        merged(tmp_path, files[0], str(tmp_path / "c.safetensors"))
