"""Ignite handlers of the evaluation: tables of scores, and reports on cases, slices, lesions and voxels."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine
from monai.data.utils import affine_to_spacing

from aeflow_monai import progress
from aeflow_monai.data.datalist.item import patient_of
from aeflow_monai.data.slicer import Slicer
from aeflow_monai.engine.case_handler import CaseHandler
from aeflow_monai.errors import file_of
from aeflow_monai.files import write_json
from aeflow_monai.metrics import (
    LesionMetrics,
    VoxelMetrics,
    detection_report,
    format_localisation,
    format_report,
    intensity_statistics,
    slice_report,
)
from aeflow_monai.output.case_score import most_anomalous_slice
from aeflow_monai.output.result_files import FOUND_BY, PLACE_COLUMNS, SCORE_COLUMNS
from aeflow_monai.output.slice_place import (
    SlicePlace,
    most_anomalous_place,
    peak_row,
    place_row,
    slice_places,
)
from aeflow_monai.result_tables import Table
from aeflow_monai.score.score import Score

__all__ = ["DetectionReport", "LocalisationReport", "ScoreWriter", "score_row"]


class ScoreWriter(CaseHandler):
    """Append a line to scores.csv for each case, as soon as it is scored; scores.unfinished.csv until all are.

    Columns, beside the case, its file and its label (if known):

    - `anomaly_score`, the case `threshold`, and `prediction`, 1 above it.
    - `p_value`: probability that a new normal case scores as high, from `n_held_out` held-out normal patients; see
      `HeldOutScores`. Empty if the model has none.
    - `plane`, `axis`, `slice_from_0` and `position_mm` of the most anomalous slice, see `SlicePlace`; empty for a 2D
      image.
    - `peak_i`, `peak_j`, `peak_k` and `peak_r_mm`, `peak_a_mm`, `peak_s_mm` of the voxel where that slice's map is
      highest, see `Peak`; of a 2D image its column and row.
    - its `ease`, see `Score`: above 1.5 the slice is too easy to reconstruct, which no map shows. Empty for other
      methods.
    - `map_score` and `global_term`: what the score was joined from, see `Score.joined`. Where the first is below the
      threshold and the score above it, the case is abnormal as a whole, and its maps may show nothing. The second is
      empty if the model has no such term.

    Args:
        path: of the table; replaced if it exists.
        labelled: whether the data has labels.
    """

    def __init__(self, path: str | Path, labelled: bool = False) -> None:
        self.path = Path(path)
        self.labelled = labelled

    def start(self, engine: Engine) -> None:
        """Begin the table."""
        label = ["label"] if self.labelled else []
        self.table = Table(self.path, ["case", "file", *label, *SCORE_COLUMNS])

    def __call__(self, engine: Engine) -> None:
        """Write the cases of this batch."""
        for source, scored in _cases(engine):
            row = score_row(source, scored)
            if self.labelled:
                row["label"] = int(source["label"])
            self.table.append(row)
            progress.case({"state": "scored", **row, "results": str(self.path.parent)})

    def finish(self, engine: Engine) -> None:
        """Give the table its name."""
        self.table.finish()


class _Report(CaseHandler):
    """What is collected of each case of a run, and written at its end."""

    def __call__(self, engine: Engine) -> None:
        """Take the cases of this batch."""
        for source, scored in _cases(engine):
            self.take(source, scored)

    @abstractmethod
    def take(self, source: Mapping[str, Any], scored: Mapping[str, Any]) -> None:
        """Take one case: what went in, and what came out."""


class DetectionReport(_Report):
    """Collect the scores of labelled cases, and trivial statistics of their images to compare them with.

    Writes metrics.json at the end and prints the report.

    Without normal or without abnormal cases there is no report, and a warning says so.

    Args:
        path: of metrics.json.
        score: holds the stored threshold.
        n_bootstrap: resamples for the intervals.
        seed: of the bootstrap; written into the report.
    """

    def __init__(self, path: str | Path, score: Score, n_bootstrap: int = 1000, seed: int = 0) -> None:
        self.path = Path(path)
        self.score = score
        self.n_bootstrap = n_bootstrap
        self.seed = seed

    def start(self, engine: Engine) -> None:
        """Forget the cases of an earlier run."""
        self.labels: list[int] = []
        self.scores: list[float] = []
        self.patients: list[str] = []
        self.statistics: dict[str, list[float]] = {}

    def take(self, source: Mapping[str, Any], scored: Mapping[str, Any]) -> None:
        """Take the label and score of one case."""
        self.labels.append(int(source["label"]))
        self.scores.append(float(scored["anomaly_score"]))
        self.patients.append(patient_of(source))
        for name, value in intensity_statistics(torch.as_tensor(source["image"])).items():
            self.statistics.setdefault(name, []).append(value)

    def finish(self, engine: Engine) -> None:
        """Write and print the report, if there are normal and abnormal cases."""
        n_failed = len(getattr(engine, "failures", ()))  # of a GuardedEvaluator
        if len(set(self.labels)) < 2:
            kind = "abnormal" if any(self.labels) else "normal"
            found = f"all {len(self.labels)} that were read are {kind}" if self.labels else "none was read"
            engine.logger.warning(f"No metrics of cases: they need normal and abnormal cases, but {found}.")
            self.path.unlink(missing_ok=True)  # of an earlier run, whose scores were others
            return
        rank, n = self.score.case_rank.tolist()
        held_out = self.score.held_out
        report = detection_report(
            self.labels,
            self.scores,
            float(self.score.case_threshold),
            calibrated_rank=(rank, n) if n else None,
            # one of each patient, or nothing is known of which are of one
            calibrated_scores=held_out.scores.tolist() if held_out.n == len(held_out.scores) else (),
            patients=self.patients,
            n_bootstrap=self.n_bootstrap,
            seed=self.seed,
            baselines=self.statistics,
        )
        report["n_failed"] = n_failed
        write_json(self.path, report)
        print(format_report(report))
        if n_failed:
            print(f"Not in these metrics: {n_failed} cases that failed.")


class LocalisationReport(_Report):
    """Compare slices and anomaly maps with lesion masks; write localisation.json at the end and print it.

    Slices count along the first plane of the slicing policy, as normal or abnormal by `Slicer.kinds`; skipped and
    unclear ones do not count. Each is listed in slice_scores.csv, by its `SlicePlace`, and each lesion in lesions.csv,
    with the largest value of the map in it. It is found if that exceeds the map threshold: then the anomaly mask covers
    a voxel of it, or more. `LesionMetrics` counts otherwise, for FROC: by the peaks of the map.
    Voxels and lesions count on the grid of the file, where the image is not background, which anything would find
    normal. A case with label 0 needs no mask. Abnormal cases without one are left out and counted; if no mask holds a
    lesion, there is no report. Without normal and abnormal slices of two patients or more it leaves out the slices.

    Args:
        folder: of the files; those of an earlier run are replaced, or removed.
        score: holds the stored map threshold.
        slicer: the slicing policy.
        n_bootstrap: resamples of cases, for the intervals of slice metrics.
        seed: of the bootstrap.
    """

    def __init__(
        self, folder: str | Path, score: Score, slicer: Slicer, n_bootstrap: int = 1000, seed: int = 0
    ) -> None:
        self.path = Path(folder, "localisation.json")
        self.table_path = Path(folder, "slice_scores.csv")
        self.lesions_path = Path(folder, "lesions.csv")
        self.score = score
        self.slicer = slicer
        self.n_bootstrap = n_bootstrap
        self.seed = seed

    def start(self, engine: Engine) -> None:
        """Forget the cases of an earlier run."""
        self.voxels, self.lesions = VoxelMetrics(), LesionMetrics()
        self.slices: list[tuple[int, float, str]] = []
        self.table: Table | None = None
        self.lesion_rows: list[dict[str, Any]] = []
        self.n_without_mask = self.n_with_lesion = 0

    def take(self, source: Mapping[str, Any], scored: Mapping[str, Any]) -> None:
        """Take the slices, voxels and lesions of one case.

        Raises:
            ValueError: a preprocessed mask does not lie on the grid of its image.
        """
        if "original_lesion" not in source and int(source["label"]):
            self.n_without_mask += 1
            return
        self._take_slices(source, scored)
        anomaly_map = scored["anomaly_map"]
        lesion = source.get("original_lesion", torch.zeros_like(anomaly_map, dtype=torch.uint8))
        foreground = scored["foreground"].amax(dim=0, keepdim=True) > 0
        self.n_with_lesion += bool((lesion != 0).any())
        self.voxels.update(anomaly_map, lesion, foreground)
        spacing = affine_to_spacing(anomaly_map.affine, r=anomaly_map.ndim - 1).tolist()
        found = self.lesions.update(anomaly_map, lesion, spacing, foreground)
        for number, (n_voxels, diameter, value) in enumerate(found, start=1):
            row = {"case": str(source["case"]), "lesion": number, "n_voxels": n_voxels, "diameter_mm": diameter}
            row |= {"map_value": value, "found": int(value > self.score.map_threshold)}
            self.lesion_rows.append(row)

    def _take_slices(self, source: Mapping[str, Any], scored: Mapping[str, Any]) -> None:
        plane, scores = next(iter(scored["slice_scores"].items()))
        kinds = self.slicer.kinds(source, plane, f"case {source['case']}")
        if self.table is None:
            self.table = Table(self.table_path, ["case", *PLACE_COLUMNS, "kind", "anomaly_score"])
        case = str(source["case"])
        places: Sequence[SlicePlace | None] = slice_places(source["image"], plane) or [None] * len(kinds)
        for place, kind, score in zip(places, kinds, scores.tolist(), strict=True):
            if not math.isnan(score):
                self.table.append({"case": case, **place_row(place), "kind": kind, "anomaly_score": score})
                if kind != "unclear":
                    self.slices.append((int(kind == "abnormal"), score, patient_of(source)))

    def finish(self, engine: Engine) -> None:
        """Write and print the report, if there were masks."""
        if self.table is not None:
            self.table.finish()
        if not self.n_with_lesion:
            for path in (self.path, self.table_path, self.lesions_path):
                path.unlink(missing_ok=True)
            engine.logger.info("No lesion in the masks of the cases that were read: no report on slices and voxels.")
            return
        labels, scores = [label for label, _, _ in self.slices], [score for _, score, _ in self.slices]
        patients = [patient for _, _, patient in self.slices]
        table = Table(self.lesions_path, list(self.lesion_rows[0]))
        for row in self.lesion_rows:
            table.append(row)
        table.finish()
        report: dict[str, Any] = {"n_abnormal_without_mask": self.n_without_mask, "found_by": FOUND_BY}
        if len(set(labels)) < 2 or len(set(patients)) < 2:
            engine.logger.warning("No metrics of slices: they need normal and abnormal ones, of two patients or more.")
        else:
            report |= slice_report(labels, scores, patients, n_bootstrap=self.n_bootstrap, seed=self.seed)
        report |= self.voxels.compute(float(self.score.map_threshold)) | self.lesions.compute()
        write_json(self.path, report)
        print(format_localisation(report))
        if self.n_without_mask:
            print(f"Not in the report on slices and voxels: {self.n_without_mask} abnormal cases without a mask.")


def score_row(source: Mapping[str, Any], scored: Mapping[str, Any]) -> dict[str, Any]:
    """What scores.csv says of a case, see `ScoreWriter`.

    Args:
        source: the case as it was read: "case" and the preprocessed "image".
        scored: what came of it, see `aeflow_monai.output.GatherScoresd`.

    Returns:
        A cell for each column, with "case" and "file" before `SCORE_COLUMNS`.
    """
    plane, index = most_anomalous_slice(scored["slice_scores"]) or next((p, 0) for p in scored["slice_scores"])
    ease = scored.get("ease", {}).get(plane)
    return {
        "case": source["case"],
        "file": file_of(source["image"]),
        "anomaly_score": scored["anomaly_score"],
        "threshold": scored["case_threshold"],
        "prediction": scored["prediction"],
        "p_value": "" if math.isnan(scored["p_value"]) else scored["p_value"],
        "n_held_out": scored["n_held_out"],
        **place_row(most_anomalous_place(source["image"], scored["slice_scores"])),
        **peak_row(scored.get("peak")),
        "ease": "" if ease is None else ease[index],
        "map_score": scored["map_score"],
        "global_term": "" if math.isnan(scored["global_term"]) else scored["global_term"],
    }


def _cases(engine: Engine) -> Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Input and output dictionaries of each case in the current, decollated batch."""
    return zip(engine.state.batch, engine.state.output, strict=True)
