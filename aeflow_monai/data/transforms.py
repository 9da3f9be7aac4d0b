"""Preprocessing transforms that MONAI lacks."""

from __future__ import annotations

import logging
import threading
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform
from monai.utils import TraceKeys
from torch import Tensor

from aeflow_monai.data.foreground import foreground_mask
from aeflow_monai.data.itk_headers import is_itk_volume
from aeflow_monai.data.nifti import is_nifti
from aeflow_monai.data.percentiles import percentiles
from aeflow_monai.data.readers import N_FILES
from aeflow_monai.errors import file_of
from aeflow_monai.geometry import axial_affine

__all__ = ["EnsureVolumed", "MatchChannelsd", "ScaleForegroundd"]


# Numbers beyond this power of 2, or below its inverse, are scaled first; results elsewhere stay as they are.
_EXTREME_EXPONENT = 64
# Mean distance of a 2D image's channels from their mean, as a fraction of its range; less in grey JPEGs.
_COLOURED = 0.02
_told_of_colours = threading.Event()  # warn once per process, not for each file
_logger = logging.getLogger(__name__)


class EnsureVolumed(MapTransform, InvertibleTransform):  # type: ignore[misc]
    """Make a 2D image a volume of one slice, so that both are processed alike; volumes pass unchanged.

    A coronal or sagittal 2D image is placed in the axial plane, with superior as anterior (and anterior as the
    patient's right), so that `Orientationd` keeps it as one slice and turns it upright. The inverse restores the 2D
    image and its affine. Works on MetaTensors, which carry the record that the inverse needs.

    Args:
        keys: keys of images (C, H, W) or volumes (C, H, W, D).
        allow_missing_keys: skip keys that are absent.

    Example:
        >>> from monai.data import MetaTensor
        >>> volume = EnsureVolumed("image")({"image": MetaTensor(torch.zeros(1, 8, 9))})
        >>> tuple(volume["image"].shape)
        (1, 8, 9, 1)
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the slice dimension where it is missing.

        Raises:
            ValueError: the data are neither a 2D image nor a volume, for example a 4D series.
        """
        d = dict(data)
        for key in self.key_iterator(d):
            image = d[key]
            if image.ndim not in (3, 4):
                raise ValueError(
                    f"Expected a 2D image (C, H, W) or a volume (C, H, W, D) at {key!r}; got shape "
                    f"{tuple(image.shape)} in {file_of(image, 'a tensor')}. Split a series into volumes first."
                )
            if image.ndim == 4:
                self.push_transform(image, extra_info={"flat": False})
                continue
            volume = image.unsqueeze(-1)
            self.push_transform(volume, extra_info={"flat": True, "affine": image.affine})
            # set last: MONAI derives the number of spatial dimensions from the affine when it resamples
            volume.affine = axial_affine(image.affine)
            d[key] = volume
        return d

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Remove the added dimension."""
        d = dict(data)
        for key in self.key_iterator(d):
            applied = self.pop_transform(d[key])[TraceKeys.EXTRA_INFO]
            if applied["flat"]:
                d[key] = d[key].squeeze(-1)
                d[key].affine = applied["affine"]
        return d


class MatchChannelsd(MapTransform):  # type: ignore[misc]
    """Convert images to the number of channels of the network.

    Grey images are often stored with three equal channels: their mean gives one. One channel is replicated to several;
    in a volume only to three, as for colours, since two or four are modalities. Channels of a volume or of several
    files are never merged.

    Args:
        keys: keys of images (C, ...).
        channels: number of channels, 1 or more.

    Example:
        >>> tuple(MatchChannelsd("image", channels=1)({"image": torch.zeros(3, 8, 8)})["image"].shape)
        (1, 8, 8)
    """

    def __init__(self, keys: KeysCollection, channels: int) -> None:
        super().__init__(keys)
        self.channels = channels

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Match the channels.

        Raises:
            ValueError: the image has several channels, and cannot be converted to the number required.
        """
        d = dict(data)
        for key in self.key_iterator(d):
            image = d[key]
            if image.shape[0] == self.channels:
                continue
            if self.channels == 1 and image.shape[0] == 3 and _is_picture(image):
                d[key] = image.mean(dim=0, keepdim=True)
                _warn_of_colours(image, d[key])
            elif image.shape[0] == 1 and (self.channels == 3 or _is_picture(image)):
                d[key] = image.repeat(self.channels, *[1] * (image.ndim - 1))
            else:
                raise ValueError(
                    f"The network takes {self.channels} channels; {key!r} has {image.shape[0]} in "
                    f"{file_of(image, 'a tensor')}. Set in_channels to the number of channels of your "
                    "images when you train; split a series (4D) into volumes first; name an image of several files in "
                    "a list, as a_t1.nii;a_t2.nii."
                )
        return d


def _warn_of_colours(image: Tensor, grey: Tensor) -> None:
    """Warn once that an image has colours, which the mean over its channels does not show."""
    spread, size = (image - grey).abs().mean(), grey.max() - grey.min()
    if spread > _COLOURED * size and not _told_of_colours.is_set():
        _told_of_colours.set()
        _logger.warning(
            f"{file_of(image, 'A picture')} has colours, but the network takes one channel: their mean is taken. Where "
            "colours matter, train with in_channels=3. Further files are not named."
        )


class ScaleForegroundd(MapTransform):  # type: ignore[misc]
    """Scale intensities to [0, 1] by robust percentiles of the foreground, channel by channel; background becomes 0.

    Skull-stripped and padded volumes have a background of one value: 0, the lowest value, or whatever the corners
    hold. In z-scored volumes it lies between the values of tissue. If such a value fills 5 % of the volume, the rest is
    foreground; else everything is. A value that next to nothing exceeds is saturated tissue or air in negative, and
    stays the brightest, unless it is 0 in all corners. Percentiles of the foreground do not change with the size of the
    field of view. A foreground of one value becomes 1. Ripples around the background, which an interpolation by splines
    leaves, are background too.

    Args:
        keys: keys of images (C, ...).
        lower: percentile that becomes 0, in [0, 100).
        upper: percentile that becomes 1, in (lower, 100].

    Raises:
        ValueError: a percentile is out of its range.

    Example:
        >>> image = torch.tensor([[-9.0, -9.0, -3.0, 0.0, 3.0]])
        >>> ScaleForegroundd("image", lower=0, upper=100)({"image": image})["image"].tolist()
        [[0.0, 0.0, 0.0, 0.5, 1.0]]
    """

    def __init__(self, keys: KeysCollection, lower: float = 0.5, upper: float = 99.5) -> None:
        super().__init__(keys)
        if not 0 <= lower < upper <= 100:
            raise ValueError(f"Percentiles have to be 0 <= lower < upper <= 100; got {lower} and {upper}.")
        self.lower = lower
        self.upper = upper

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Scale the intensities."""
        d = dict(data)
        for key in self.key_iterator(d):
            scaled = d[key].to(torch.float32, copy=True)
            for channel in torch.as_tensor(scaled).as_subclass(Tensor):
                values = channel.cpu().numpy()  # on the CPU this shares the channel's memory
                _bring_to_middle(values)
                inside = foreground_mask(values)
                if inside is not None and not inside.any():
                    channel.zero_()
                    continue
                low, high = percentiles(values, inside, [self.lower, self.upper])
                if high > low:
                    np.subtract(values, np.float32(low), out=values)
                    np.divide(values, np.float32(high - low), out=values)
                    np.clip(values, 0, 1, out=values)
                else:
                    np.greater_equal(values, np.float32(low), out=values, casting="unsafe")
                if inside is not None:
                    np.multiply(values, inside, out=values)
                channel.copy_(torch.from_numpy(values))
            d[key] = scaled
        return d


def _bring_to_middle(values: npt.NDArray[np.float32]) -> None:
    """Multiply extreme values in place by a power of 2, so that 32 bits hold their differences exactly."""
    largest = max(abs(float(values.min())), abs(float(values.max())))
    exponent = int(np.frexp(largest)[1])
    if abs(exponent) > _EXTREME_EXPONENT:
        np.ldexp(values, -exponent, out=values)


def _is_picture(image: Tensor) -> bool:
    """Whether channels are colours: channels from several files are modalities, and those of a volume a series."""
    file = Path(file_of(image))
    of_files = isinstance(image, MetaTensor) and int(image.meta.get(N_FILES, 1)) > 1
    return image.shape[3:] in ((), (1,)) and not (of_files or is_nifti(file) or is_itk_volume(file))
