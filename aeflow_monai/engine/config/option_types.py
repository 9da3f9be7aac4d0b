"""Types and ranges of options, so that a wrong value is reported by name before any data are read."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from monai.bundle import ConfigParser

from aeflow_monai.data.datalist.layouts import LAYOUTS
from aeflow_monai.data.slicer import FITS
from aeflow_monai.engine.inference.detector import FLOW_TERMS
from aeflow_monai.engine.inference.runtimes import RUNTIMES
from aeflow_monai.engine.inference.saliency import SALIENCIES
from aeflow_monai.files import user_path
from aeflow_monai.geometry import PLANES
from aeflow_monai.network.feature_norm import FEATURE_NORMS
from aeflow_monai.network.flow_step import MIXINGS
from aeflow_monai.network.subnets import SUBNETS
from aeflow_monai.output.maps import EXTENSIONS, OUTPUTS
from aeflow_monai.printable import meant

__all__ = ["PATHS", "expected_of", "require_options"]

# Paths of a run, which are not part of the model.
PATHS = ("dataset_dir", "output_dir", "resume", "cache_dir")


# Of the encoder; the config of a bundle has "checkpoint".
_WEIGHTS = ("wheel", "hub", "random")
_MAX_BATCH = 2**20


class _Type(NamedTuple):
    """Allowed values of an option: in words, and as a test."""

    expected: str
    accepts: Callable[[Any], bool]


def _number(low: float, high: float = math.inf, *, above: bool = False, below: bool = False) -> _Type:
    """A number from low to high; `above` and `below` exclude the ends."""

    def accepts(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return False
        return (low < value if above else low <= value) and (value < high if below else value <= high)

    words = f"above {low:g}" if above else f"of {low:g} or more"
    if high < math.inf:
        words += f" and {'below' if below else 'at most'} {high:g}"
    return _Type(f"a number {words}", accepts)


def _whole(low: int, high: float = math.inf) -> _Type:
    def accepts(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high

    return _Type(f"a whole number of {low} or more" + (f", at most {high:.0f}" if high < math.inf else ""), accepts)


def _choice(names: Collection[str]) -> _Type:
    return _Type(f"one of {', '.join(names)}", lambda value: isinstance(value, str) and value in names)


def _list(what: str, example: str, accepts: Callable[[Any], bool], least: int = 0) -> _Type:
    def accepts_all(value: Any) -> bool:
        return isinstance(value, (list, tuple)) and len(value) >= least and all(map(accepts, value))

    return _Type(f'a list of {what}, as "{example}"', accepts_all)


def _one_or(kind: _Type, accepts: Callable[[Any], bool]) -> _Type:
    """A list for which a single item may be given."""
    return _Type(kind.expected, lambda value: kind.accepts(value) or accepts(value))


def _or_null(kind: _Type) -> _Type:
    return _Type(f"{kind.expected}, or null", lambda value: value is None or kind.accepts(value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_device(value: Any) -> bool:
    """Return whether torch can compute on this device."""
    if isinstance(value, int) or value is None:
        return False
    try:
        return torch.zeros(1, device=value).device.type != "meta"
    except (RuntimeError, AssertionError, NotImplementedError, TypeError):  # the type depends on the device
        return False


def _is_weights(value: Any) -> bool:
    return isinstance(value, str) and (value in (*_WEIGHTS, "checkpoint") or user_path(value).is_file())


def _is_label(value: Any) -> bool:
    return _is_text(value) or (isinstance(value, int) and not isinstance(value, bool))  # MedMNIST has numbers


def _are_different(kind: _Type) -> _Type:
    return _Type(kind.expected, lambda value: kind.accepts(value) and len(set(value)) == len(value))


def _are_ascending(kind: _Type) -> _Type:
    return _Type(kind.expected, lambda value: kind.accepts(value) and list(value) == sorted(set(value)))


_FLAG = _Type("true or false", lambda value: isinstance(value, bool))
_PATH = _Type("a path", lambda value: isinstance(value, Path) or _is_text(value))
_PAIR = _Type(
    'two whole numbers, rows and columns, as "[128,128]"',
    lambda value: isinstance(value, (list, tuple)) and len(value) == 2 and all(map(_whole(1).accepts, value)),
)
_FRACTIONS = _number(0, 1, above=True).accepts

_TYPES = {
    "dataset_dir": _or_null(_PATH),
    "output_dir": _or_null(_PATH),
    "cache_dir": _or_null(_PATH),
    "resume": _or_null(_PATH),
    "layout": _choice(("auto", *LAYOUTS)),
    "normal_classes": _one_or(_list("names", "[NORMAL]", _is_label, least=1), _is_label),
    "modalities": _one_or(_list("names", "[t1,t2]", _is_text), _is_text),
    "channel_names": _one_or(_list("names", "[t1,t2]", _is_text), _is_text),
    "series": _one_or(_list("numbers of series, identifiers or modalities", "[3,MR]", _is_label), _is_label),
    "test_fraction": _number(0, 1, below=True),
    "lesion_free_slices": _FLAG,
    "device": _Type("a device that torch has here, as cpu or cuda:0", _is_device),
    "runtime": _choice(RUNTIMES),
    "seed": _whole(0, 2**32 - 1),
    "epochs": _or_null(_whole(1)),
    "batch_size": _whole(1, _MAX_BATCH),
    "learning_rate": _number(0, 1000, above=True),
    "in_channels": _whole(1),
    "image_size": _PAIR,
    "axes": _are_different(_list(", ".join(PLANES), "[axial]", lambda value: value in [*PLANES], least=1)),
    "backbone": _Type("the name of a timm model", lambda value: isinstance(value, str) and timm.is_model(value)),
    "stages": _are_ascending(_list("stages from 0, ascending", "[2,3]", _whole(0).accepts, least=1)),
    "encoder_weights": _Type(f"{', '.join(_WEIGHTS)}, or the path of a file that exists", _is_weights),
    "lesion_copies": _or_null(_whole(0, 1000)),
    "acquisition_copies": _whole(0, 1000),
    "specificity": _number(0, 1, above=True, below=True),
    "calibration_fraction": _number(0, 1, above=True, below=True),
    "labelled_abnormal": _or_null(_whole(0)),
    "overwrite": _FLAG,
    "outputs": _list(f"some of {', '.join(OUTPUTS)}", "[anomaly_map,anomaly_mask]", lambda value: value in [*OUTPUTS]),
    "output_ext": _choice(EXTENSIONS),
    "pictures": _FLAG,
    "n_bootstrap": _whole(1),
    "inferer#batch_size": _whole(1, _MAX_BATCH),
    "inferer#saliency": _or_null(_choice(SALIENCIES)),
    "dataloader#num_workers": _whole(0),
    "network_def#flow_term": _choice(FLOW_TERMS),
    "network_def#network#n_steps": _whole(1),
    "network_def#network#subnet": _choice(SUBNETS),
    "network_def#network#hidden_channels": _or_null(_whole(1)),
    "network_def#network#clamp": _number(0, above=True),
    "network_def#network#mixing": _choice(MIXINGS),
    "network_def#network#feature_norm": _or_null(_choice(FEATURE_NORMS)),
    "network_def#network#decoder_channels": _or_null(_list("whole numbers", "[64,32]", _whole(1).accepts, least=1)),
    "network_def#score#beta": _number(0, 1),
    "network_def#score#published": _FLAG,
    "network_def#score#top_fractions": _or_null(_list("fractions in (0, 1]", "[0.05,1.0]", _FRACTIONS, least=1)),
    "network_def#score#case_top_fraction": _or_null(_number(0, 1, above=True)),
    "network_def#score#position_normalisation": _FLAG,
    "network_def#score#slice_sigma": _number(0),
    "network_def#score#ease_weight": _number(0),
    "network_def#score#level_weight": _number(0, 1, above=True),
    "network_def#score#global_term": _FLAG,
    "slicer#fit": _choice(FITS),
    "slicer#min_foreground": _number(0, 1),
    "slicer#slice_range": _or_null(
        _Type(
            'the first and the last slice, counted from 1, as "[60,100]"',
            lambda value: _PAIR.accepts(value) and value[0] <= value[1],
        )
    ),
    "slicer#normal_margin_mm": _number(0),
    "slicer#min_lesion_mm2": _number(0),
    "loss#normal#alpha": _number(0, 1),
    "loss#weight": _number(0, above=True),
    "loss#prior#distance": _number(0, above=True),
    "train#abnormal#transform#radius": _list("two fractions", "[0.02,0.15]", _FRACTIONS, least=2),
    "train#sampler#normals_per_abnormal": _whole(1),
    "train#slices#step": _whole(1),
    "train#dataloader#num_workers": _whole(0),
    "train#dataloader#batch_size": _whole(1, _MAX_BATCH),
    "validate#dataloader#batch_size": _whole(1, _MAX_BATCH),
    "optimizer#weight_decay": _number(0),
    "optimizer#lr": _number(0, 1000, above=True),
}


def expected_of(name: str) -> str | None:
    """Return the allowed values of an option in words; None for one that is not in the table.

    Example:
        >>> expected_of("epochs")
        'a whole number of 1 or more, or null'
    """
    known = _TYPES.get(name.replace("::", "#"))
    return None if known is None else known.expected


def require_options(content: Mapping[str, Any]) -> None:
    """Raise an error for options of a wrong type or out of range.

    Values that are expressions are not checked: the components check the results.

    Args:
        content: the merged config.

    Raises:
        ValueError: names each such option, with the expected and the given value.

    Example:
        >>> require_options({"epochs": 3, "image_size": [128, 128], "device": "$get_device()"})
        >>> require_options({"epochs": "abc"})
        Traceback (most recent call last):
        ValueError: epochs: expected a whole number of 1 or more, or null; got 'abc'.
    """
    if wrong := list(_wrong_options(content)):
        raise ValueError("\n".join(wrong))


def _wrong_options(content: Mapping[str, Any]) -> Iterator[str]:
    parser = ConfigParser(dict(content))
    for name, kind in _TYPES.items():
        if name not in parser:
            continue
        value = parser[name]
        if isinstance(value, str) and name not in PATHS and value.startswith(("$", "@")):
            continue
        if not kind.accepts(value):
            yield f"{name}: expected {kind.expected}; got {value!r}.{_hint(name, value)}"


def _hint(name: str, value: Any) -> str:
    known: Collection[str] = {"backbone": timm.list_models(), "layout": [*LAYOUTS]}.get(name, [])
    return meant(value, known, n=3)
