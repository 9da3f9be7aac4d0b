"""Writer of scores.csv: a row for each case, as soon as it is scored."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ignite.engine import Engine

from aeflow_monai import progress
from aeflow_monai.engine.evaluation.case_collector import cases_of_batch
from aeflow_monai.engine.runs.case_handler import CaseHandler
from aeflow_monai.errors import file_of
from aeflow_monai.output.case_score import most_anomalous_slice
from aeflow_monai.output.slice_place import (
    most_anomalous_place,
    peak_row,
    place_row,
)
from aeflow_monai.result_files import SCORE_COLUMNS
from aeflow_monai.result_tables import Table

__all__ = ["ScoreWriter", "score_row"]


class ScoreWriter(CaseHandler):
    """Append a row to scores.csv for each case when it is scored; named scores.unfinished.csv until all are.

    Columns besides the case, its file and its label (if known):

    - `anomaly_score`, the case `threshold`, and `prediction`, which is 1 above it.
    - `p_value`: probability that a new normal case scores as high, from `n_held_out` held-out normal patients; see
      `HeldOutScores`. Empty if the model has none.
    - `plane`, `axis`, `slice_from_0` and `position_mm` of the most anomalous slice, see `SlicePlace`; empty for a 2D
      image.
    - `peak_i`, `peak_j`, `peak_k` and `peak_r_mm`, `peak_a_mm`, `peak_s_mm` of the voxel where that slice's map is
      highest, see `Peak`; of a 2D image its column and row.
    - `ease` of that slice, see `Score`: above 1.5 the slice is too easy to reconstruct, which no map shows. Empty for
      other methods.
    - `map_score` and `global_term`: the parts of the score, see `Score.joined`. If the first is below the threshold and
      the score above it, the case is abnormal as a whole, and its maps may show nothing. The second is empty if the
      model has no global term.

    Args:
        path: path of the table, which is replaced if it exists.
        labelled: whether the data has labels.
    """

    def __init__(self, path: str | Path, labelled: bool = False) -> None:
        self.path = Path(path)
        self.labelled = labelled

    def start(self, engine: Engine) -> None:
        """Start the table."""
        label = ["label"] if self.labelled else []
        self.table = Table(self.path, ["case", "file", *label, *SCORE_COLUMNS])

    def __call__(self, engine: Engine) -> None:
        """Write the cases of this batch."""
        for source, scored in cases_of_batch(engine):
            row = score_row(source, scored)
            if self.labelled:
                row["label"] = int(source["label"])
            self.table.append(row)
            progress.case({"state": "scored", **row, "results": str(self.path.parent)})

    def finish(self, engine: Engine) -> None:
        """Rename the finished table."""
        self.table.finish()


def score_row(source: Mapping[str, Any], scored: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of scores.csv, see `ScoreWriter`.

    Args:
        source: the case's input: "case" and the preprocessed "image".
        scored: the case's output, see `aeflow_monai.output.GatherScoresd`.

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
