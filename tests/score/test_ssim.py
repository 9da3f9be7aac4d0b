import pytest
import torch
from monai.metrics.regression import compute_ssim_and_cs
from score.precision import double_precision, rounding_error
from torch import Tensor
from torch.nn import functional as F

from aeflow_monai.score.ssim import ssim_map

C1, C2 = 0.01**2, 0.03**2
WINDOW = 11


def moments_by_hand(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Means, variances and covariance: Gaussian window of 11 pixels, sigma 1.5, mirrored borders."""
    profile = torch.exp(-0.5 * (torch.arange(-5.0, 6, dtype=torch.float64) / 1.5) ** 2)
    window = (profile[:, None] * profile / profile.sum() ** 2)[None, None]

    def mean(x: Tensor) -> Tensor:
        flat = F.pad(x.flatten(0, 1)[:, None], (5, 5, 5, 5), mode="reflect")
        return F.conv2d(flat, window).view_as(x)

    x, y = one.double(), other.double()
    mean_x, mean_y = mean(x), mean(y)
    return mean_x, mean_y, mean(x * x) - mean_x**2, mean(y * y) - mean_y**2, mean(x * y) - mean_x * mean_y


def ssim_by_hand(one: Tensor, other: Tensor) -> Tensor:
    """SSIM of images (N, C, H, W) in [0, 1], mean over channels."""
    mean_x, mean_y, var_x, var_y, cov = moments_by_hand(one, other)
    luminance = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    return (luminance * (2 * cov + C2) / (var_x + var_y + C2)).mean(dim=1, keepdim=True)


def an_image_and_a_noisy_one(channels: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, channels, 8, 8, generator=generator)
    image = F.interpolate(coarse, size=(64, 48), mode="bicubic").clamp(0, 1)
    return image, (image + 0.02 * torch.randn(image.shape, generator=generator)).clamp(0, 1)


@pytest.mark.parametrize("channels", [1, 3])
@double_precision()
def test_map_is_the_stated_formula(channels: int) -> None:
    image, noisy = an_image_and_a_noisy_one(channels)
    expected = ssim_by_hand(noisy, image)
    assert expected.min() < 0.9
    torch.testing.assert_close(ssim_map(noisy, image), expected, rtol=0, atol=1e-9)


def bound_of(one: Tensor, other: Tensor) -> Tensor:
    """Most that the map of float32 images can be wrong by."""
    _, _, var_x, var_y, _ = moments_by_hand(one, other)
    # each variance is a mean of squares, summed over rows and columns, less the square of such a mean
    error = rounding_error(3 * 2 * WINDOW, largest=1.0) / (var_x + var_y + C2)
    # there are two of them above, and two below, the fraction's bar
    return (4 * error).mean(dim=1, keepdim=True)


def test_map_is_that_of_monai() -> None:
    image, noisy = an_image_and_a_noisy_one(1)
    padded = (F.pad(x, [WINDOW // 2] * 4, mode="reflect") for x in (noisy, image))
    expected, _ = compute_ssim_and_cs(*padded, 2, [WINDOW] * 2, [1.5] * 2, data_range=1.0)
    bound = 2 * bound_of(noisy, image)  # MONAI's is rounded too
    assert ((ssim_map(noisy, image) - expected).abs() <= bound).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [1, 3])
def test_half_precision_of_the_network_costs_it_nothing(channels: int, dtype: torch.dtype) -> None:
    image, noisy = an_image_and_a_noisy_one(channels)
    bound = bound_of(noisy, image)
    assert bound.mean() < 0.01  # half precision is wrong by more than 0.1
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        found = ssim_map(noisy, image)
    assert found.dtype == torch.float32
    assert ((found.double() - ssim_by_hand(noisy, image)).abs() <= bound).all()


@pytest.mark.parametrize(
    ("other", "ssim"), [(0.5, 1.0), (0.0, 1e-4 / (0.25 + 1e-4)), (1.0, (1 + 1e-4) / (1.25 + 1e-4))]
)
@double_precision()
def test_flat_images_by_hand(other: float, ssim: float) -> None:
    flat = torch.full((1, 1, 32, 32), 0.5)
    found = ssim_map(torch.full_like(flat, other), flat)
    torch.testing.assert_close(found, torch.full_like(found, ssim), rtol=0, atol=1e-9)


@double_precision()
def test_an_image_is_like_itself() -> None:
    image, _ = an_image_and_a_noisy_one(2)
    torch.testing.assert_close(ssim_map(image, image), torch.ones(2, 1, 64, 48), rtol=0, atol=1e-9)
