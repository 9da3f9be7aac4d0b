"""The Ignite handler that writes the report of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ignite.engine import Engine

from aeflow_monai.engine.runs.case_handler import CaseHandler
from aeflow_monai.output.report import PictureBudget, write_report
from aeflow_monai.score.score import Score
from aeflow_monai.score.thresholds import is_specificity_uncertain, specificity_range

__all__ = ["ReportWriter", "report_model"]


class ReportWriter(CaseHandler):
    """Keep small pictures of the most interesting cases during a run, and write report.html at its end.

    It reads the output of other handlers, so it has to come after them and before `RunRecord`.

    Args:
        folder: folder of the results.
        score: score with the thresholds.
    """

    def __init__(self, folder: str | Path, score: Score) -> None:
        self.folder = Path(folder)
        self.score = score

    def start(self, engine: Engine) -> None:
        """Reset the collected cases."""
        self.budget = PictureBudget()

    def __call__(self, engine: Engine) -> None:
        """Keep pictures of the cases of this batch; a failed case has none."""
        for source, scored in zip(engine.state.batch, engine.state.output, strict=True):
            if (block := scored.get("report_pictures")) is not None:
                label = source.get("label")
                case = str(source["case"]).encode("utf-8", "backslashreplace").decode("utf-8")  # as in scores.csv
                self.budget.add(
                    case,
                    float(scored["anomaly_score"]),
                    float(scored["case_threshold"]),
                    block,
                    None if label is None else int(label),
                )

    def finish(self, engine: Engine) -> None:
        """Write the report."""
        write_report(self.folder, self.budget.pictures(), report_model(self.score))


def report_model(score: Score) -> dict[str, Any]:
    """Return the report's facts of the model: thresholds and their uncertainty, held-out scores, formula of scores."""
    rank, n_held_out = score.case_rank.tolist()
    held_out = {"n_held_out": n_held_out, "held_out_scores": score.held_out.scores.tolist()}
    model = {"thresholds": score.thresholds, "rank": rank, **held_out}
    if score.knows_global_terms:
        model["joined"] = score.global_term.formula("map", "term")
    if n_held_out and is_specificity_uncertain(rank, n_held_out):
        model["specificity_range"] = list(specificity_range(rank, n_held_out))
    return model
