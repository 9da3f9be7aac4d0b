"""Writer of localisation.json: how well maps localise abnormal slices, lesions and voxels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine
from monai.data.utils import affine_to_spacing

from aeflow_monai.data.datalist.item import patient_of
from aeflow_monai.data.slicer import Slicer
from aeflow_monai.engine.evaluation.case_collector import CaseCollector
from aeflow_monai.files import write_json
from aeflow_monai.metrics import (
    LesionMetrics,
    VoxelMetrics,
    format_localisation,
    slice_report,
)
from aeflow_monai.output.slice_place import (
    SlicePlace,
    place_row,
    slice_places,
)
from aeflow_monai.result_files import FOUND_BY, LESIONS, LOCALISATION, PLACE_COLUMNS, SLICE_SCORES
from aeflow_monai.result_tables import Table
from aeflow_monai.score.score import Score

__all__ = ["LocalisationMetricsWriter"]


class LocalisationMetricsWriter(CaseCollector):
    """Compare slices and anomaly maps with lesion masks; write localisation.json at the end and print it.

    Slices along the first plane of the slicer are normal or abnormal according to `Slicer.kinds`; skipped and unclear
    ones do not count. Each is listed in slice_scores.csv by its `SlicePlace`, and each lesion in lesions.csv with the
    largest map value in it. A lesion is found if that value exceeds the map threshold, that is, if the anomaly mask
    covers at least one of its voxels. `LesionMetrics` uses another criterion for FROC, the peaks of the map. Voxels and
    lesions count on the grid of the file, outside the background, which any method would find normal. A case with label
    0 needs no mask. Abnormal cases without a mask are left out and counted; if no mask holds a lesion, there is no
    report. Slice metrics are left out unless there are normal and abnormal slices of at least two patients.

    Args:
        folder: folder of the files; those of an earlier run are replaced or removed.
        score: score with the map threshold.
        slicer: the slicing policy.
        n_bootstrap: number of bootstrap resamples of cases, for the intervals of slice metrics.
        seed: seed of the bootstrap.
    """

    def __init__(
        self, folder: str | Path, score: Score, slicer: Slicer, n_bootstrap: int = 1000, seed: int = 0
    ) -> None:
        self.path = Path(folder, LOCALISATION)
        self.table_path = Path(folder, SLICE_SCORES)
        self.lesions_path = Path(folder, LESIONS)
        self.score = score
        self.slicer = slicer
        self.n_bootstrap = n_bootstrap
        self.seed = seed

    def start(self, engine: Engine) -> None:
        """Reset the collected cases."""
        self.voxels, self.lesions = VoxelMetrics(), LesionMetrics()
        self.slices: list[tuple[int, float, str]] = []
        self.table: Table | None = None
        self.lesion_rows: list[dict[str, Any]] = []
        self.n_without_mask = self.n_with_lesion = 0

    def take(self, source: Mapping[str, Any], scored: Mapping[str, Any]) -> None:
        """Collect the slices, voxels and lesions of one case.

        Raises:
            ValueError: a preprocessed mask is not on the grid of its image.
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
