"""Names of cases: short, and never the same for two images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from aeflow_monai.data.datalist.image_files import some


def name_cases(short: Mapping[Path, str], root: Path, taken: set[str]) -> dict[Path, str]:
    """The short names of paths; where one is not unique with the folder too, then with the extension too."""
    names = dict(short)
    for tail in (short, {path: path.name.replace(".", "_") for path in short}):
        counts = Counter([*names.values(), *taken])
        for path, name in names.items():
            if counts[name] > 1:
                inner = path.relative_to(root if path.is_relative_to(root) else path.anchor)
                names[path] = "_".join([*(part for part in inner.parts[:-1] if part != ".."), tail[path]])
    counts = Counter([*names.values(), *taken])
    if clash := [path for path, name in names.items() if counts[name] > 1]:
        raise ValueError(
            f"{len(clash)} images have no case name of their own: {some(clash)}. Rename them, or name their cases in "
            "the column case of a manifest.csv."
        )
    return names
