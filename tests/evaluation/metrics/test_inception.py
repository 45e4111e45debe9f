"""The Inception graph of 2015: shape, names, and its result against the same net written out branch by branch."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from diffusemble.evaluation.metrics.base import load_metric
from diffusemble.evaluation.metrics.inception import WEIGHTS, Inception, InceptionV3
from diffusemble.evaluation.metrics.pixels import resize_like_tensorflow


@pytest.fixture(scope="module")
def net() -> InceptionV3:
    """Random weights of the real layout, scaled so that no activation dies or explodes."""
    torch.manual_seed(0)
    net = InceptionV3()
    for name, tensor in net.state_dict().items():
        if name.endswith("conv.weight"):
            tensor.normal_(std=(2 / tensor[0].numel()) ** 0.5)
        elif "running_var" in name:
            tensor.uniform_(0.5, 1.5)
        elif "bn" in name and tensor.is_floating_point():
            tensor.uniform_(0.8, 1.2) if name.endswith("weight") else tensor.normal_(std=0.1)
    return net.eval()


class WrittenOut:
    """The net as straight lines, from a state dictionary alone."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.weights = weights

    def conv(self, x: Tensor, name: str, stride: int = 1, padding: tuple[int, int] = (0, 0)) -> Tensor:
        get = lambda part: self.weights[f"{name}.{part}"]  # noqa: E731
        x = F.conv2d(x, get("conv.weight"), stride=stride, padding=padding)
        bn = [get(f"bn.{part}") for part in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *bn, eps=1e-3).relu()

    def path(self, x: Tensor, *names: str) -> Tensor:
        """Convolutions that keep the size."""
        for name in names:
            high, wide = self.weights[f"{name}.conv.weight"].shape[2:]
            x = self.conv(x, name, padding=(high // 2, wide // 2))
        return x

    def mean_pool(self, x: Tensor) -> Tensor:
        inside = F.avg_pool2d(torch.ones_like(x), 3, 1, 1)
        return F.avg_pool2d(x, 3, 1, 1) / inside

    def a(self, x: Tensor, m: str) -> Tensor:
        five = self.path(x, f"{m}.branch5x5_1", f"{m}.branch5x5_2")
        three = self.path(x, *(f"{m}.branch3x3dbl_{i}" for i in (1, 2, 3)))
        pooled = self.path(self.mean_pool(x), f"{m}.branch_pool")
        return torch.cat([self.path(x, f"{m}.branch1x1"), five, three, pooled], 1)

    def b(self, x: Tensor, m: str) -> Tensor:
        three = self.conv(self.path(x, f"{m}.branch3x3dbl_1", f"{m}.branch3x3dbl_2"), f"{m}.branch3x3dbl_3", 2)
        return torch.cat([self.conv(x, f"{m}.branch3x3", 2), three, F.max_pool2d(x, 3, 2)], 1)

    def c(self, x: Tensor, m: str) -> Tensor:
        seven = self.path(x, *(f"{m}.branch7x7_{i}" for i in (1, 2, 3)))
        twice = self.path(x, *(f"{m}.branch7x7dbl_{i}" for i in (1, 2, 3, 4, 5)))
        pooled = self.path(self.mean_pool(x), f"{m}.branch_pool")
        return torch.cat([self.path(x, f"{m}.branch1x1"), seven, twice, pooled], 1)

    def d(self, x: Tensor, m: str) -> Tensor:
        three = self.conv(self.path(x, f"{m}.branch3x3_1"), f"{m}.branch3x3_2", 2)
        seven = self.path(x, *(f"{m}.branch7x7x3_{i}" for i in (1, 2, 3)))
        return torch.cat([three, self.conv(seven, f"{m}.branch7x7x3_4", 2), F.max_pool2d(x, 3, 2)], 1)

    def e(self, x: Tensor, m: str, pooled: Tensor) -> Tensor:
        three = self.path(x, f"{m}.branch3x3_1")
        twice = self.path(x, f"{m}.branch3x3dbl_1", f"{m}.branch3x3dbl_2")
        forks = [self.path(three, f"{m}.branch3x3_2{side}") for side in "ab"]
        forks += [self.path(twice, f"{m}.branch3x3dbl_3{side}") for side in "ab"]
        return torch.cat([self.path(x, f"{m}.branch1x1"), *forks, self.path(pooled, f"{m}.branch_pool")], 1)

    def __call__(self, x: Tensor) -> Tensor:
        x = self.conv(self.conv(x, "Conv2d_1a_3x3", 2), "Conv2d_2a_3x3")
        x = F.max_pool2d(self.path(x, "Conv2d_2b_3x3"), 3, 2)
        x = F.max_pool2d(self.conv(self.conv(x, "Conv2d_3b_1x1"), "Conv2d_4a_3x3"), 3, 2)
        for m in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
            x = self.a(x, m)
        x = self.b(x, "Mixed_6a")
        for m in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
            x = self.c(x, m)
        x = self.d(x, "Mixed_7a")
        x = self.e(x, "Mixed_7b", self.mean_pool(x))
        x = self.e(x, "Mixed_7c", F.max_pool2d(x, 3, 1, 1))
        return x.mean(dim=(2, 3))


def test_result_is_that_of_the_net_written_out(net):
    images = torch.rand(1, 3, 40, 52, generator=torch.Generator().manual_seed(1))
    pictures = (images * 255).round()
    with torch.no_grad():
        expected = WrittenOut(net.state_dict())((resize_like_tensorflow(pictures, 299) - 128) / 128)
    features = Inception(net)(images)
    assert features.shape == (1, 2048)
    assert features.std() > 1e-2
    torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-4)
    logits = Inception(net, logits=True)(images)
    torch.testing.assert_close(logits, net.fc(expected) - net.fc.bias, rtol=1e-3, atol=1e-3)


def test_size_and_names_are_those_of_the_published_file():
    with torch.device("meta"):
        net = InceptionV3()
    # 21,785,568 without the classifier, as every Inception-v3 without its second classifier; 1,008 classes here.
    assert sum(p.numel() for p in net.parameters()) == 21_785_568 + 1008 * 2049
    weights = {key: tuple(value.shape) for key, value in net.state_dict().items() if "num_batches" not in key}
    assert len(weights) == 94 * 5 + 2
    assert weights["Conv2d_1a_3x3.conv.weight"] == (32, 3, 3, 3)
    assert weights["Mixed_5b.branch_pool.conv.weight"] == (32, 192, 1, 1)
    assert weights["Mixed_6b.branch7x7dbl_4.conv.weight"] == (128, 128, 7, 1)
    assert weights["Mixed_6e.branch7x7_2.conv.weight"] == (192, 192, 1, 7)
    assert weights["Mixed_7a.branch7x7x3_4.bn.running_var"] == (192,)
    assert weights["Mixed_7c.branch3x3dbl_3b.conv.weight"] == (384, 384, 3, 1)
    assert weights["fc.weight"] == (1008, 2048)


def test_published_file_loads(net, tmp_path: Path):
    """A file as torch saves it: with counters, from which nothing but tensors is read."""
    torch.save(net.state_dict(), tmp_path / WEIGHTS.name)
    loaded = Inception.load(tmp_path)
    own = loaded.net.state_dict()
    assert all(torch.equal(own[key], value) for key, value in net.state_dict().items())
    assert not any(p.requires_grad for p in loaded.net.parameters())


def test_missing_and_foreign_weights_are_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=rf"{WEIGHTS.name}.*Download https://github.com/mseitzer.*{tmp_path}"):
        load_metric("fid", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no folder was given.*a folder that you give as weights"):
        load_metric("is")
    torch.save({"fc.weight": torch.zeros(1000, 2048), "extra": torch.zeros(1)}, tmp_path / WEIGHTS.name)
    with pytest.raises(ValueError, match=r"does not fit InceptionV3: Conv2d_1a_3x3.conv.weight is missing.*in all"):
        load_metric("kid", tmp_path)
