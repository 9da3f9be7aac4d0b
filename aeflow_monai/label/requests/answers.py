"""Errors as HTTP answers that a reader can act on; MONAI Label by itself answers with `Internal Server Error`."""

from __future__ import annotations

import errno
import logging
import re
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import requests
from fastapi import HTTPException
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException, MONAILabelException
from starlette.exceptions import HTTPException as AnyHTTPException

from aeflow_monai.errors import describe_error, root_cause
from aeflow_monai.label.requests.routes import NotOffered

__all__ = ["log_error", "message_of", "readable_errors", "status_of", "without_paths"]

_logger = logging.getLogger(__name__)

# Errors caused by the request or its image rather than by the server.
_OF_THE_REQUEST = (ValueError, TypeError, FileNotFoundError, MONAILabelException)
_BYTES = re.compile(r"""(, beginning with )?\bb(['"])(\\.|(?!\2).)*\2""", re.DOTALL)


@contextmanager
def readable_errors(path: str = "", name: str = "") -> Iterator[None]:
    """Turn an error into an HTTP answer: 400 if the request or its image caused it, else 500.

    Args:
        path: path of the request's image, if any.
        name: name of the image in the answer.

    Raises:
        HTTPException: with the message of the root cause; its traceback goes to the server's log at the level DEBUG.
    """
    try:
        yield
    except AnyHTTPException:
        raise
    except Exception as error:
        log_error(error)
        said = message_of(error)
        detail = said.replace(path, name) if path else said
        raise HTTPException(status_code=status_of(error), detail=detail) from error


def log_error(error: Exception) -> None:
    """Log an error in one line without its message, which may name files; at the level DEBUG with its traceback."""
    cause = root_cause(error)
    frames = traceback.extract_tb(cause.__traceback__)
    place = f" in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
    level = logging.INFO if status_of(error) < 500 else logging.ERROR
    _logger.log(level, f"A request is answered with {status_of(error)}: {type(cause).__name__}{place}.")
    _logger.debug("The request's traceback:", exc_info=error)


def status_of(error: Exception) -> int:
    """Return the HTTP status for an error."""
    cause = root_cause(error)
    if isinstance(cause, AnyHTTPException):
        return int(cause.status_code)
    if isinstance(cause, NotOffered):
        return cause.status
    if isinstance(cause, (ImageNotFoundException, LabelNotFoundException)):
        return 404
    if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
        return 507
    if isinstance(cause, requests.RequestException):
        return 502
    return 400 if isinstance(cause, _OF_THE_REQUEST) else 500


def message_of(error: Exception) -> str:
    """Return the message of an error, without wrapping by MONAI, MONAI Label or FastAPI and without bytes of a file.

    Args:
        error: the error as caught.

    Returns:
        Its message, or its type if it has none.
    """
    cause = root_cause(error)
    if isinstance(cause, AnyHTTPException):
        message = str(cause.detail)
    elif isinstance(cause, MONAILabelException):
        message = str(getattr(cause, "msg", cause))
    elif isinstance(cause, requests.RequestException):
        kind = type(cause).__name__
        message = f"The DICOMweb server does not answer as one should ({kind}). Is it there, and is its address right?"
    else:
        message = describe_error(error)
    return _BYTES.sub("", message)


def without_paths(text: str, folders: Sequence[str]) -> str:
    r"""Make the absolute paths below some folders in a text relative to these folders.

    Args:
        text: text of an answer.
        folders: absolute paths; of nested folders the inner one applies.

    Example:
        >>> without_paths("No image in /data/studies/a.png, see /data/studies.", ["/data/studies"])
        'No image in a.png, see studies.'
    """
    for folder in sorted(folders, key=len, reverse=True):
        text = text.replace(f"{folder}/", "")
        text = re.sub(rf"{re.escape(folder)}(?![\w-])", Path(folder).name.replace("\\", r"\\"), text)
    return text
