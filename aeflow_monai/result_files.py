"""Names of a run's result files and columns that several parts of the package use."""

from __future__ import annotations

__all__ = [
    "COMPARED_CASES",
    "COMPARISON",
    "FAILURES",
    "FOUND_BY",
    "LESIONS",
    "LOCALISATION",
    "METRICS",
    "PEAK_COLUMNS",
    "PLACE_COLUMNS",
    "REPORT",
    "RUN_RECORD",
    "SCORES",
    "SCORE_COLUMNS",
    "SLICE_SCORES",
    "unfinished_name",
]

# Tables and reports, and the page that shows them.
SCORES, SLICE_SCORES, LESIONS, FAILURES = "scores.csv", "slice_scores.csv", "lesions.csv", "failures.csv"
METRICS, LOCALISATION, RUN_RECORD = "metrics.json", "localisation.json", "run.json"
COMPARISON, COMPARED_CASES = "comparison.json", "comparison.csv"
REPORT = "report.html"
# key of localisation.json for the criterion of `found` in lesions.csv; earlier versions have none
FOUND_BY = "anomaly_mask"
PLACE_COLUMNS = ("plane", "axis", "slice_from_0", "position_mm")
PEAK_COLUMNS = ("peak_i", "peak_j", "peak_k", "peak_r_mm", "peak_a_mm", "peak_s_mm")
SCORE_COLUMNS = (
    *("anomaly_score", "threshold", "prediction", "p_value", "n_held_out"),
    *PLACE_COLUMNS,
    *PEAK_COLUMNS,
    *("ease", "map_score", "global_term"),
)


def unfinished_name(table: str) -> str:
    """Return the name of a table to which rows are still added.

    Example:
        >>> unfinished_name("scores.csv")
        'scores.unfinished.csv'
    """
    stem, dot, suffix = table.rpartition(".")
    return f"{stem}.unfinished{dot}{suffix}"
