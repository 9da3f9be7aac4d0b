"""Temporary files of the app: their folder and their removal."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from monailabel.config import settings

__all__ = ["keep_writes_inside", "remove_stale", "removing_upload"]

_STALE_SECONDS = 60 * 60


def keep_writes_inside(app_dir: Path) -> None:
    """Keep temporary results, uploads, sessions and DICOM files in the app's folder, not in /tmp or a home folder.

    Args:
        app_dir: folder of the app.
    """
    temporary = app_dir / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    tempfile.tempdir = str(temporary)
    if not settings.MONAI_LABEL_SESSION_PATH:
        settings.MONAI_LABEL_SESSION_PATH = str(app_dir / "sessions")
    if not settings.MONAI_LABEL_DICOMWEB_CACHE_PATH:
        settings.MONAI_LABEL_DICOMWEB_CACHE_PATH = str(app_dir / "dicom")


@contextmanager
def removing_upload(path: str) -> Iterator[None]:
    """Remove the temporary file of an upload if its processing fails; MONAI Label does so only after a success."""
    try:
        yield
    except Exception:
        if Path(path).parent == Path(tempfile.gettempdir()):
            Path(path).unlink(missing_ok=True)
        raise


def remove_stale(folder: str) -> None:
    """Remove temporary files that have not been used for an hour."""
    for file in Path(folder).iterdir():
        with suppress(OSError):  # another process has removed it
            if file.is_file() and time.time() - file.stat().st_mtime > _STALE_SECONDS:
                file.unlink()
