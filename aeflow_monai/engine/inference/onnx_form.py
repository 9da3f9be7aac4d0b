"""Export of a torch module to an ONNX model in memory."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock

import torch
from torch import Tensor, nn

__all__ = ["onnx_of"]

_OPSET = 18  # supported since ONNX Runtime 1.14 and OpenVINO 2023
_one_at_a_time = Lock()  # the filter of warnings is global to the process


def onnx_of(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    of_any_size: Mapping[str, str],
) -> bytes:
    """Export a module to ONNX.

    This uses torch's exporter by tracing: that by `torch.export` takes fifteen times as long, which is too long for a
    run on a few images, and needs another package.

    Args:
        module: a module in evaluation mode that takes tensors and returns a tuple of tensors.
        inputs: an example of each input, by name, in order.
        outputs: names of the outputs, in order.
        of_any_size: for inputs and outputs with a dynamic first dimension, the name of this dimension.

    Returns:
        The content of the ONNX file.

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
    """Silence torch's warnings about constants in the trace, which sizes are here, and about its newer exporter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
