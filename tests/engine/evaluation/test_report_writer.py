import json
import re
from pathlib import Path

import torch
from report_results import block, write_results
from scored_cases import CASES, evaluate

from aeflow_monai import Score
from aeflow_monai.engine import DetectionMetricsWriter, ReportWriter, ScoreWriter
from aeflow_monai.engine.runs.earlier_results import find_in_the_way, find_results
from aeflow_monai.output.report import write_report


def test_the_report_has_what_the_run_found(tmp_path: Path) -> None:
    score = Score()
    score.case_threshold.fill_(1.0)
    score.slice_threshold.fill_(1.0)
    score.map_threshold.fill_(3.0)
    score.case_rank.copy_(torch.tensor([19, 19]))
    cases = [
        (source, scored | {"case_threshold": 1.0} | ({} if number == 2 else {"report_pictures": block(seed=number)}))
        for number, (source, scored) in enumerate(CASES)
    ]
    handlers = [
        ScoreWriter(tmp_path / "scores.csv", labelled=True),
        DetectionMetricsWriter(tmp_path / "metrics.json", score, n_bootstrap=20),
        ReportWriter(tmp_path, score),
    ]
    for _ in range(2):  # a second run reports its own cases
        evaluate(*handlers, cases=cases)
        text = (tmp_path / "report.html").read_text(encoding="utf-8")
        found = re.search(r'id="data">(.*?)</script>', text)
        assert found
        data = json.loads(found[1])
        assert [case["case"] for case in data["cases"]] == ["a", "b", "c", "d"]
        assert data["pictures"].keys() == {"a", "b", "d"}
        assert data["model"]["thresholds"] == {"case_threshold": 1.0, "slice_threshold": 1.0, "map_threshold": 3.0}
        assert data["metrics"]["auroc"] == 1.0


def test_a_name_that_is_no_utf8_finds_its_pictures(tmp_path: Path) -> None:
    score = Score()
    cases = [
        ({**source, "case": "sub\udcff"}, {**scored, "case_threshold": 1.0, "report_pictures": block()})
        for source, scored in CASES[:1]
    ]
    for buffer in (score.case_threshold, score.slice_threshold, score.map_threshold):
        buffer.fill_(1.0)
    evaluate(ScoreWriter(tmp_path / "scores.csv"), ReportWriter(tmp_path, score), cases=cases)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text.count('"sub\\\\udcff"') == 2  # the case and its pictures


def test_its_files_are_known_as_results_and_others_of_their_names_are_not(tmp_path: Path) -> None:
    write_report(tmp_path, write_results(tmp_path, 4))
    assert {"report.html", "lesions.csv"} <= {path.name for path in find_results(tmp_path)}
    ours = {path.name for path in find_in_the_way(tmp_path, {"a"})}
    for name in ("report.html", "lesions.csv"):
        (tmp_path / name).write_text("<html>somebody else's</html>")
    assert {path.name for path in find_in_the_way(tmp_path, {"a"})} - ours == {"report.html", "lesions.csv"}
