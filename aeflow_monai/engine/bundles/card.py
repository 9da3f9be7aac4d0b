"""The model card: how a model was trained, and what performance to expect."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

from ignite.engine import Engine

from aeflow_monai.about import DISCLAIMER, __version__
from aeflow_monai.data.datalist.item import patient_of
from aeflow_monai.engine.config.stored_model import model_path, read_model
from aeflow_monai.engine.runs.case_handler import CaseHandler
from aeflow_monai.engine.runs.duplicates import count_seen, fingerprints_for, fingerprints_of, notes_on_duplicates
from aeflow_monai.engine.runs.run_record import add_note
from aeflow_monai.files import read_json, replacing, sweep
from aeflow_monai.locks import turn_in
from aeflow_monai.printable import counted
from aeflow_monai.result_files import LOCALISATION, METRICS, RUN_RECORD
from aeflow_monai.score.score import Score
from aeflow_monai.score.thresholds import patients_needed, specificity_range

__all__ = [
    "CardWriter",
    "add_evaluation",
    "facts_of_data",
    "hash_of_list",
    "write_card",
]

_logger = logging.getLogger(__name__)

# By the name of the list in the model card: what an evaluation on these images, which the model has seen, is worth.
_SEEN = {
    "trained_on": "trained on, so this is no test",
    "thresholds_on": "calibrated on, so neither AUROC nor specificity is a test",
}
_EVALUATIONS = "## Evaluations"
_OWN_VERBS = (("predict", "SCANS", "MAPS"), ("evaluate", "DATA", "RESULTS"), ("calibrate", "NORMALS", "SITE"))
_VERBS = (("inference", "SCANS", "MAPS"), ("evaluate", "DATA", "RESULTS"), ("calibrate", "NORMALS", "SITE"))


class CardWriter(CaseHandler):
    """Add the table of an evaluation to the model card at its end, even if some cases failed.

    It reads the reports, so it has to be after their writers in the list of handlers.

    Args:
        folder: folder of the bundle.
        results_dir: folder of the results.
        datalist: datalist of the evaluated cases, which identifies the table.
    """

    def __init__(self, folder: str | Path, results_dir: str | Path, datalist: Sequence[Mapping[str, Any]]) -> None:
        self.folder = Path(folder)
        self.results_dir = Path(results_dir)
        self.datalist = datalist

    def start(self, engine: Engine) -> None:
        """Reset the count of cases."""
        self.n_scored = 0

    def __call__(self, engine: Engine) -> None:
        """Count the cases of this batch."""
        self.n_scored += len(engine.state.batch)  # empty if the case failed

    def finish(self, engine: Engine) -> None:
        """Write the table, and note cases seen in training and duplicates in log, run.json and report."""
        title = f"{self.n_scored} cases, list {hash_of_list(self.datalist)}"
        if self.n_scored < len(self.datalist):
            title += f"; {len(self.datalist) - self.n_scored} more failed"
        card = read_model(model_path(self.folder)).card
        notes = notes_on_duplicates(self.datalist, fingerprints_of(self.datalist))
        fingerprints = fingerprints_for(card, self.datalist)
        # if it has a mask, its lesion-free slices may have been normals of the training
        plain = [item.get("label") == 1 and "lesion" not in item for item in self.datalist]
        for what, warning in _SEEN.items():
            known = card.get(what, ())
            if n_seen := count_seen(fingerprints, known):
                notes.append(f"{n_seen} of {len(self.datalist)} test images were {warning}.")
                title += f"; {n_seen} were {warning}"
            if n_contradicted := count_seen([*compress(fingerprints, plain)], known):
                images = counted(n_contradicted, "image")
                notes.append(f"{images} that the test calls abnormal stood among the normals of the model.")
        for note in notes:
            _logger.warning(note)
            add_note(self.results_dir / RUN_RECORD, note)
        reports = [read_json(self.results_dir / name) for name in (METRICS, LOCALISATION)]
        report = {name: value for found in reports for name, value in found.items()}
        if report and (self.folder / "docs" / "README.md").is_file():
            try:
                add_evaluation(self.folder, title, {**_runtime(self.results_dir), **report})
            except OSError as error:  # the bundle may be read-only
                _logger.warning(f"The model card was not completed: {error}")


def write_card(folder: str | Path, score: Score, facts: Mapping[str, Any]) -> None:
    """Write docs/README.md of a bundle.

    Args:
        folder: folder of the bundle.
        score: a calibrated score.
        facts: "data" (counts and hash by name), "seed", "versions" (by package), "specificity" (as requested), and
            "options" (those that differ from the defaults, as text).
    """
    rank, n_patients = score.case_rank.tolist()
    wanted = float(facts["specificity"])
    expected, (low, high) = score.expected_specificity, specificity_range(rank, n_patients)
    lines = [
        "# Model card: AE-Flow anomaly detection",
        "",
        f"**{DISCLAIMER}**",
        "",
        "Trained on normal images alone, this model gives every new image or volume a calibrated anomaly score, an "
        "anomaly map and a mask. It was written by aeflow_monai " + __version__ + ".",
        "",
        "## Use",
        "From any folder, with the package installed; `RUN` is the folder that holds `configs`:",
        "",
        *(f"    aeflow {verb} {data} -m RUN -o {out}" for verb, data, out in _OWN_VERBS),
        "",
        "MONAI runs the same, and takes any option of the configs:",
        "",
        *(
            "    python -m monai.bundle run "
            f"--config_file RUN/configs/{verb}.yaml --dataset_dir {data} --output_dir {out}"
            for verb, data, out in _VERBS
        ),
        "",
        "Preprocessing and network are part of this folder: no option of the training is given again.",
        "",
        "## Training data",
        *_table(facts["data"]),
        "",
        f"Seed {facts['seed']}. Versions: "
        + ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
        + ".",
        "",
        "## Options that differ from the defaults",
        *([f"- {option}" for option in facts["options"]] or ["None."]),
        "",
        "## Thresholds",
        "In standard deviations of held-out normals; larger values are abnormal.",
        "",
        *_table({name.replace("_", " "): f"{value:.4g}" for name, value in score.thresholds.items()}),
        "",
        f"Requested specificity: {100 * wanted:.4g}%. The case threshold is set on {n_patients} held-out patients: "
        f"{expected:.1%} of new normal cases of the same kind can be expected below it, on average; by the chance of "
        f"who was held out, {low:.0%} to {high:.0%} (nine of ten times)."
        + (
            f" A specificity of {100 * wanted:.4g}% takes {patients_needed(wanted)} held-out patients; with fewer, the "
            "largest of their scores is the threshold, and it is not reliable."
            if n_patients < patients_needed(wanted)
            else ""
        ),
        "",
        "## Limits",
        "- Thresholds hold for normal images like those of the training: same site, scanner, patients, preparation. "
        "For others, `calibrate.yaml` sets them anew.",
        "- A score says how much an image differs from the normal images of the training, not what it shows.",
        "- Lesions that are much smaller than the network's grid of 8 or 16 pixels, or as faint as noise, are missed.",
        "",
        _EVALUATIONS,
        "Each evaluation with `evaluate.yaml` adds its table.",
        "",
    ]
    with replacing(Path(folder, "docs", "README.md")) as unfinished:
        unfinished.write_text("\n".join(lines), encoding="utf-8")


def add_evaluation(folder: str | Path, title: str, report: Mapping[str, Any]) -> None:
    """Add the table of an evaluation to the model card, replacing one of the same title.

    Args:
        folder: folder of the bundle.
        title: title of the table, one line.
        report: metrics by name, of which the numbers that measure performance are shown.
    """
    path = Path(folder, "docs", "README.md")
    shown = {}
    for name in (*_SHOWN, "runtime"):
        if name in report:
            interval = report.get(f"{name}_ci95")
            value = f"{report[name]:.3f}" if isinstance(report[name], float) else str(report[name])
            shown[name.replace("_", " ")] = value + (
                f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval is not None else ""
            )
    with turn_in(path.parent):  # other evaluations may add their tables at the same time
        sweep(path.parent)
        card, *tables = path.read_text(encoding="utf-8").rstrip("\n").split("\n### ")
        tables = [table.rstrip("\n") for table in tables if table.partition("\n")[0] != title]
        tables.append("\n".join([title, *_table(shown)]))
        with replacing(path) as unfinished:
            unfinished.write_text("\n\n### ".join([card.rstrip("\n"), *tables]) + "\n", encoding="utf-8")


def facts_of_data(**lists: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Describe datalists for a model card: counts and a hash, no paths.

    Args:
        lists: datalists by name.

    Example:
        >>> facts_of_data(held_out=[{"case": "a", "patient": "p", "label": 0}])["held out: cases"]
        1
    """
    facts: dict[str, Any] = {}
    for name, items in lists.items():
        label = name.replace("_", " ")
        facts[f"{label}: cases"] = len(items)
        facts[f"{label}: patients"] = len({patient_of(item) for item in items})
        facts[f"{label}: SHA-256 of the list, its beginning"] = hash_of_list(items)
    return facts


def hash_of_list(items: Sequence[Mapping[str, Any]]) -> str:
    """Hash a datalist's cases, patients and labels, independent of paths and order: the beginning of a SHA-256."""
    known = sorted([str(item["case"]), patient_of(item), str(item.get("label"))] for item in items)
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]


_SHOWN = (
    *("n_normal", "n_abnormal", "auroc", "average_precision", "sensitivity", "specificity", "expected_specificity"),
    *("n_slices", "slice_auroc", "slice_average_precision", "n_lesions", "voxel_auroc", "voxel_average_precision"),
    *("aupro", "dice", "froc_score"),
)


def _runtime(results_dir: Path) -> dict[str, Any]:
    """Return the runtime of an evaluation from its run.json."""
    machine = read_json(results_dir / RUN_RECORD).get("machine", {})
    return {name: value for name, value in machine.items() if name == "runtime"}


def _table(rows: Mapping[str, Any]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
