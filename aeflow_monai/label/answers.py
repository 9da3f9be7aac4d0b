"""Errors as HTTP answers that a reader can act on; MONAI Label by itself answers with `Internal Server Error`."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import HTTPException
from monailabel.interfaces.exception import MONAILabelException

from aeflow_monai.errors import describe_error, root_cause

__all__ = ["message_of", "readable_errors"]

_logger = logging.getLogger(__name__)

# What is wrong with the request or its image, rather than with the server.
_OF_THE_REQUEST = (ValueError, TypeError, FileNotFoundError, MONAILabelException)


@contextmanager
def readable_errors() -> Iterator[None]:
    """Turn an error inside into an HTTP answer: 400 for what the request or its image is to blame for, else 500.

    Raises:
        HTTPException: with the message of the error that began it; its traceback goes to the server's log.
    """
    try:
        yield
    except HTTPException:
        raise
    except Exception as error:
        _logger.exception("A request failed")
        status = 400 if isinstance(root_cause(error), _OF_THE_REQUEST) else 500
        raise HTTPException(status_code=status, detail=message_of(error)) from error


def message_of(error: Exception) -> str:
    """What an error says, without the wrapping of MONAI, MONAI Label or FastAPI.

    Args:
        error: as it was caught.

    Returns:
        Its message, or its type where it has none.
    """
    if isinstance(error, HTTPException):
        return str(error.detail)
    cause = root_cause(error)
    if isinstance(cause, MONAILabelException):
        return str(cause.msg)
    return describe_error(error)
