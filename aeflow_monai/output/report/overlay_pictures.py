"""Pictures for the report of a run from its overlays, if there is no report with pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image

__all__ = ["overlay_pictures"]

_WIDTH = 1200
_QUALITY = 70


def overlay_pictures(
    folder: str | Path, cases: Iterable[str], limit: int, places: Mapping[str, str] | None = None
) -> dict[str, dict[str, str]]:
    """Downsample the overlays of cases, as many as fit.

    Args:
        folder: folder of the results.
        cases: names of the cases, the most interesting first.
        limit: limit of all pictures together, in characters.
        places: from each case to the folder of its files, below that of the results; None if they are in the folder
            itself.

    Returns:
        From each case to its "overlay", a data URL.
    """
    found: dict[str, dict[str, str]] = {}
    for case in cases:
        path = Path(folder, (places or {}).get(case, ""), f"{case}_overlay.png")
        if "/" in case or not path.is_file():
            continue
        try:
            url = _reduced(path)
        except OSError:  # damaged, or not a picture
            continue
        limit -= len(url)
        if limit < 0:
            break
        found[case] = {"overlay": url}
    return found


def _reduced(path: Path) -> str:
    stream = io.BytesIO()
    with Image.open(path) as picture:
        picture.thumbnail((_WIDTH, _WIDTH))
        picture.convert("RGB").save(stream, "jpeg", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
