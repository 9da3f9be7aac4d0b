"""The page: data, pictures, style and script in one file that needs no network access."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from aeflow_monai.about import DISCLAIMER, __version__
from aeflow_monai.files import replacing
from aeflow_monai.marks import MARK
from aeflow_monai.output.report.overlay_pictures import overlay_pictures
from aeflow_monai.output.report.picture_budget import LIMIT
from aeflow_monai.output.report.run_tables import read_run, require_whole
from aeflow_monai.result_files import REPORT

__all__ = ["is_report", "write_report"]

_GENERATOR = f'<meta name="generator" content="{MARK}">'  # by which the page of an earlier run is recognised
_SCRIPTS = ("elements", "scales", "charts", "table", "pictures", "gallery", "viewer", "sections", "start")
_BEGIN, _END = '<script type="application/json" id="data">', "</script>"


def write_report(
    folder: str | Path,
    pictures: Mapping[str, Mapping[str, Any]] | None = None,
    model: Mapping[str, Any] | None = None,
) -> Path:
    """Write report.html of an inference or evaluation from its tables.

    Args:
        folder: folder of the results.
        pictures: from each case to its pictures, see `PictureBudget.pictures`. If None, those of an existing report in
            the folder, or else its overlays.
        model: "thresholds" by name, "rank" and "n_held_out" of the case threshold, and if known "held_out_scores" and
            "joined", the formula of scores. If None, that of an existing report.

    Returns:
        The path of the report.

    Raises:
        FileNotFoundError: there is no scores.csv.
        ValueError: a table or report of the run is damaged or lacks cases; or the page would replace a report.html that
            no run has written.
    """
    path = Path(folder, REPORT)
    if pictures is None and path.exists() and not is_report(path):
        raise ValueError(f"{path} is no report of aeflow_monai, and would be lost. Move it first.")
    data = read_run(folder)
    earlier = _read(path)
    if pictures is None:
        require_whole(folder, data)
        by_score = sorted(data["cases"], key=lambda case: -case.get("anomaly_score", 0.0))
        names = [case["case"] for case in by_score]
        pictures = earlier.get("pictures") or overlay_pictures(folder, names, LIMIT)
    known = {case["case"] for case in data["cases"]}
    data["pictures"] = {case: kept for case, kept in pictures.items() if case in known}
    data["model"] = dict(earlier.get("model", {}) if model is None else model)
    data |= {"notice": DISCLAIMER, "version": __version__, "colours": _colours()}
    with replacing(path) as unfinished:
        unfinished.write_text(_page(data), encoding="utf-8")
    return path


def is_report(path: str | Path) -> bool:
    """Return whether a file is a page that this package wrote."""
    with Path(path).open("rb") as file:
        return _GENERATOR.encode() in file.read(200)


def _page(data: Mapping[str, Any]) -> str:
    style, script = _part("report.css"), "\n".join(_part(f"{name}.js") for name in _SCRIPTS)
    # Only this script and this style are executed, whatever a case's name contains, and nothing is fetched.
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    head, body = _part("report.html").split("<!--DATA-->")
    head = head.replace("<!--GENERATOR-->", _GENERATOR).replace("<!--POLICY-->", policy).replace("/*STYLE*/", style)
    return "".join([head, _BEGIN, _json(data), _END, f"\n<script>{script}</script>", body])


def _json(data: Any) -> str:
    """Return JSON for embedding in HTML: a case's name cannot end the element."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _read(path: Path) -> dict[str, Any]:
    """Return the data of a report; empty if there is none."""
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text.partition(_BEGIN)[2].partition(_END)[0])
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


@cache
def _part(name: str) -> str:
    return files("aeflow_monai.output.report").joinpath("assets", name).read_text(encoding="utf-8")


@cache
def _colours() -> str:
    """Return the anomaly map's colours as in an overlay: 256 times red, green and blue, in hexadecimal."""
    import matplotlib  # not needed by unfinished archives, which have no page
    import numpy as np

    colours = matplotlib.colormaps["inferno"](np.linspace(0.25, 1, 256), bytes=True)[:, :3]
    return bytes(np.ascontiguousarray(colours)).hex()
