"""What other parts of the package look for in the results of a run: names of files, and columns of tables."""

from __future__ import annotations

__all__ = ["FOUND_BY", "PEAK_COLUMNS", "PLACE_COLUMNS", "RUN_RECORD", "SCORE_COLUMNS"]

RUN_RECORD = "run.json"
# in localisation.json, where it names the rule of `found` in lesions.csv; that of earlier versions has no name
FOUND_BY = "anomaly_mask"
PLACE_COLUMNS = ("plane", "axis", "slice_from_0", "position_mm")
PEAK_COLUMNS = ("peak_i", "peak_j", "peak_k", "peak_r_mm", "peak_a_mm", "peak_s_mm")
SCORE_COLUMNS = (
    *("anomaly_score", "threshold", "prediction", "p_value", "n_held_out"),
    *PLACE_COLUMNS,
    *PEAK_COLUMNS,
    *("ease", "map_score", "global_term"),
)
