"""Makes a site of the documentation: `sphinx-build -W docs FOLDER`; it needs no internet."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

DOCS = Path(__file__).parent
CONFIGS = {
    "train.yaml": "Training",
    "inference.yaml": "Inference",
    "evaluate.yaml": "Evaluation",
    "calibrate.yaml": "Calibration",
}

project = "aeflow_monai"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "aeflow_monai"
html_static_path: list[str] = []
myst_heading_anchors = 4
autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_use_ivar = True
suppress_warnings = ["myst.xref_missing"]  # links to files of the repository


def options_of(text: str) -> list[tuple[str, str, str]]:
    """Keys at the top of a config with their defaults and comments, up to the parts that a training fixes."""
    found = []
    for line in text.partition("\n# --- what the model is")[0].partition("\nbundle_root:")[0].splitlines():
        if match := re.match(r"(\w+): (.+?)(?:  # (.*))?$", line):
            found.append((match[1], match[2], match[3] or ""))
    return found


def write_config_files() -> None:
    """Write the page of all options, made from the configs themselves."""
    lines = ["# Options in the config files", "", "Made from the configs. [Options](options.md) explains them."]
    for file, title in CONFIGS.items():
        lines += ["", f"## {title}: {file}", "", "| option | default | |", "|---|---|---|"]
        text = (DOCS.parent / "bundle" / "configs" / file).read_text(encoding="utf-8")
        for cells in options_of(text):
            name, default, says = (cell.replace("|", "\\|") for cell in cells)
            lines.append(f"| `{name}` | `{default}` | {says} |")
    (DOCS / "config_files.md").write_text("\n".join([*lines, ""]), encoding="utf-8")


def write_api() -> None:
    """Write the page of the names that `aeflow_monai` exports."""
    import aeflow_monai

    lines = ["# Python names", "", "What `aeflow_monai` exports.", "", "```{eval-rst}"]
    for name in aeflow_monai.__all__:
        value = getattr(aeflow_monai, name)
        if isinstance(value, str) or inspect.ismodule(value):
            continue
        kind = "autoclass" if isinstance(value, type) else "autofunction"
        lines += [f".. {kind}:: aeflow_monai.{name}", *(["   :members:"] if kind == "autoclass" else []), ""]
    (DOCS / "api.md").write_text("\n".join([*lines, "```", ""]), encoding="utf-8")


write_config_files()
write_api()
