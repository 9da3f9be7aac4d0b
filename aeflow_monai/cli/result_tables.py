"""Tables that runs write, and lists of images that they take."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from aeflow_monai.files import home, write_json

__all__ = ["data_of", "rows_of"]


def rows_of(table: Path) -> list[dict[str, str]]:
    """Rows of a table of results; none if it is not there.

    Args:
        table: path of the .csv file.
    """
    if not table.is_file():
        return []
    with table.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def data_of(images: Sequence[str]) -> str:
    """What a config takes for these images: the only path, or a list of them, which is kept to repeat the run.

    Args:
        images: paths.

    Returns:
        A path.
    """
    if len(images) == 1:
        return images[0]
    content = {"test": [{"image": str(Path(path).expanduser().absolute())} for path in images]}
    name = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    path = Path(home("lists", f"{name[:16]}.json"))
    write_json(path, content)
    return str(path)
