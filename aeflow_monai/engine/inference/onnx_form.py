"""A module of torch as an ONNX model, in memory."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock

import torch
from torch import Tensor, nn

__all__ = ["onnx_of"]

_OPSET = 18  # of ONNX Runtime 1.14 and OpenVINO 2023 on
_one_at_a_time = Lock()  # what silences warnings is of the whole process


def onnx_of(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    of_any_size: Mapping[str, str],
) -> bytes:
    """An ONNX model that does what a module does.

    Made by torch's exporter by tracing: the one by `torch.export` takes fifteen times as long, which a run that scores
    a few images would wait for, and needs a further package.

    Args:
        module: in evaluation mode; takes tensors, and gives a tuple of them.
        inputs: an example of each, by name, in their order.
        outputs: their names, in their order.
        of_any_size: of inputs and outputs whose first dimension may have any size, the name of that size.

    Returns:
        The file's content.

    Raises:
        ModuleNotFoundError: the package onnx is not installed.
    """
    import onnx  # noqa: F401  # which torch needs, and asks for when all else is done

    stream = io.BytesIO()
    with _one_at_a_time, torch.no_grad(), _without_advice():
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            stream,  # type: ignore[arg-type]  # its signature is that of the other exporter
            dynamo=False,
            opset_version=_OPSET,
            input_names=[*inputs],
            output_names=[*outputs],
            dynamic_axes={name: {0: size} for name, size in of_any_size.items()},
        )
    return stream.getvalue()


@contextmanager
def _without_advice() -> Iterator[None]:
    """Silence torch on numbers of the trace that are constants, as sizes here are, and on its newer exporter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
