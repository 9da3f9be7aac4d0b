import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from scored_cases import CASES, case, evaluate
from sklearn.metrics import roc_auc_score
from torch import Tensor

from aeflow_monai import Score, Slicer
from aeflow_monai.engine.evaluation.detection_metrics import DetectionMetricsWriter
from aeflow_monai.engine.evaluation.localisation_metrics import LocalisationMetricsWriter
from aeflow_monai.engine.evaluation.score_writer import ScoreWriter
from aeflow_monai.metrics import LesionMetrics, VoxelMetrics


@pytest.fixture
def score() -> Score:
    """The reports take thresholds from it, so it is calibrated by hand where one needs them."""
    return Score()


# --- cases ------------------------------------------------------------------------------------------------------------


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# --- scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_a_line_for_each_case(tmp_path: Path, batch_size: int) -> None:
    evaluate(ScoreWriter(tmp_path / "scores.csv", labelled=True), batch_size=batch_size)
    written = rows(tmp_path / "scores.csv")
    assert list(written[0]) == [
        *("case", "file", "label", "anomaly_score", "threshold", "prediction", "p_value", "n_held_out"),
        *("plane", "axis", "slice_from_0", "position_mm"),
        *("peak_i", "peak_j", "peak_k", "peak_r_mm", "peak_a_mm", "peak_s_mm", "ease"),
        *("map_score", "global_term"),
    ]
    assert [(row["case"], row["label"], row["prediction"]) for row in written] == [
        ("a", "0", "0"),
        ("b", "1", "1"),
        ("c", "0", "0"),
        ("d", "1", "1"),
    ]
    assert [float(row["anomaly_score"]) for row in written] == [0.1 + 0.2, 2.5, -0.5, 1.5]
    assert {row["threshold"] for row in written} == {"1.0"}
    assert [(row["p_value"], row["n_held_out"]) for row in written] == [("0.25", "3")] * 2 + [("", "3"), ("0.25", "3")]
    # of four slices from S 5 to S 20 the third, third, second and third, which the file has from the top
    assert {(row["plane"], row["axis"]) for row in written} == {("axial", "i")}
    assert [row["slice_from_0"] for row in written] == ["1", "1", "2", "1"]
    assert [row["position_mm"] for row in written] == ["15.0", "15.0", "10.0", "15.0"]
    assert [row["ease"] for row in written] == ["2.5", "", "", ""]  # of that slice; not every network tells
    assert [float(row["map_score"]) for row in written] == [-0.7, 1.5, -1.5, 0.5]
    assert [row["global_term"] for row in written] == ["0.5", "", "", ""]  # nor has every score such a term
    assert written[0]["file"] == "images/a.nii.gz"


def test_no_label_is_written_where_none_is_known(tmp_path: Path) -> None:
    evaluate(ScoreWriter(tmp_path / "scores.csv"))
    assert "label" not in rows(tmp_path / "scores.csv")[0]


def test_a_second_run_replaces_the_table(tmp_path: Path) -> None:
    for _ in range(2):
        evaluate(ScoreWriter(tmp_path / "scores.csv"))
    assert len(rows(tmp_path / "scores.csv")) == len(CASES)


def test_cases_before_a_failure_are_in_the_table_which_says_that_it_is_unfinished(tmp_path: Path) -> None:
    class Failing:
        def attach(self, engine: Engine) -> None:
            engine.add_event_handler(Events.ITERATION_STARTED(once=3), self)

        def __call__(self, engine: Engine) -> None:
            raise OSError("the third file is broken")

    with pytest.raises(OSError, match="third"):
        evaluate(ScoreWriter(tmp_path / "scores.csv"), Failing())
    assert [row["case"] for row in rows(tmp_path / "scores.unfinished.csv")] == ["a", "b"]
    assert not (tmp_path / "scores.csv").exists()


# --- report on cases --------------------------------------------------------------------------------------------------


def test_the_report_is_written_and_printed(tmp_path: Path, score: Score, capsys: pytest.CaptureFixture[str]) -> None:
    score.case_threshold.fill_(2.0)
    score.case_rank.copy_(torch.tensor([3, 3]))
    report = DetectionMetricsWriter(tmp_path / "out/metrics.json", score, n_bootstrap=20, seed=3)
    evaluate(report, batch_size=2)
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert (metrics["n_normal"], metrics["n_abnormal"], metrics["bootstrap_seed"], metrics["n_bootstrap"]) == (
        2,
        2,
        3,
        20,
    )
    assert (metrics["auroc"], metrics["threshold"]) == (1.0, 2.0)
    assert (metrics["sensitivity"], metrics["specificity"], metrics["oracle_best_f1"]) == (0.5, 1.0, 1.0)
    assert (metrics["expected_specificity"], metrics["is_specificity_contradicted"]) == (0.75, False)
    assert metrics["baselines"] == {"intensity_mean": 1.0, "intensity_std": 0.5, "intensity_p95": 1.0}
    printed = capsys.readouterr().out
    assert "4 (2 normal, 2 abnormal)" in printed
    assert "oracle" in printed


def test_a_second_run_reports_its_own_cases_only(tmp_path: Path, score: Score) -> None:
    score.case_threshold.fill_(2.0)
    report = DetectionMetricsWriter(tmp_path / "metrics.json", score, n_bootstrap=20)
    for _ in range(2):
        evaluate(report)
        assert json.loads((tmp_path / "metrics.json").read_text())["n"] == len(CASES)


@pytest.mark.parametrize(
    ("labels", "found"), [((1, 1), "all 2 that were read are abnormal"), ((0,), "all 1 that were read are normal")]
)
def test_one_kind_of_cases_gives_no_report_and_a_warning(
    tmp_path: Path, score: Score, caplog: pytest.LogCaptureFixture, labels: tuple[int, ...], found: str
) -> None:
    (tmp_path / "metrics.json").touch()
    cases = [case(f"{i}", label, 1.0) for i, label in enumerate(labels)]
    evaluate(DetectionMetricsWriter(tmp_path / "metrics.json", score), cases=cases)
    assert not (tmp_path / "metrics.json").exists()
    assert f"No metrics of cases: they need normal and abnormal cases, but {found}." in caplog.text


# --- report on slices, lesions and voxels -----------------------------------------------------------------------------


SIZE = (8, 8, 6)
AFFINE = torch.diag(torch.tensor([2.0, 2.0, 4.0, 1.0]))  # mm
SLICER = Slicer(axes=["axial", "coronal"], normal_margin_mm=5.0, min_lesion_mm2=20.0)


def lesion(*slices: tuple[int, int]) -> Tensor:
    """A mask with squares: slice, counted from 0, and pixels along each side; a pixel has 4 mm2."""
    mask = torch.zeros(1, *SIZE, dtype=torch.uint8)
    for number, side in slices:
        mask[0, 2 : 2 + side, 3 : 3 + side, number] = 2
    return mask


def volume(
    name: str, label: int, mask: Tensor | None = None, patient: str = ""
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A case with a map that is higher in the lesion; the first slice was skipped."""
    generator = torch.Generator().manual_seed(ord(name))
    values = torch.randn(1, *SIZE, generator=generator)
    image = MetaTensor(torch.zeros(1, *SIZE), affine=AFFINE)
    source: dict[str, Any] = {"case": name, "label": torch.tensor(label), "image": image}
    if patient:
        source["patient"] = patient
    if mask is not None:
        source["lesion"] = source["original_lesion"] = MetaTensor(mask, affine=AFFINE)
        values += mask
    scores = torch.tensor([torch.nan, *values.amax(dim=(0, 1, 2))[1:].tolist()])
    foreground = torch.ones(1, *SIZE)
    foreground[:, :2] = 0  # two rows of background
    coronal = torch.full((SIZE[0],), 99.0)
    return source, {
        "anomaly_map": MetaTensor(values, affine=AFFINE),
        "foreground": MetaTensor(foreground, affine=AFFINE),
        "slice_scores": {"axial": scores, "coronal": coronal},
    }


# of a: slice 2 (from 0) is abnormal, 3 has too little lesion, 1 and 4 are too near, 5 is normal, 0 was skipped
VOLUMES = [
    volume("a", 1, lesion((2, 3), (3, 1)), patient="one"),
    volume("b", 0),
    volume("c", 1),
    volume("d", 1, lesion((2, 4)), patient="one"),
]


def localisation(folder: Path) -> Any:
    return json.loads((folder / "localisation.json").read_text())


@pytest.mark.parametrize("batch_size", [1, 3])
def test_slices_are_listed_and_counted_by_their_kind(tmp_path: Path, score: Score, batch_size: int) -> None:
    score.map_threshold.fill_(1.5)
    evaluate(LocalisationMetricsWriter(tmp_path, score, SLICER, 20, seed=3), cases=VOLUMES, batch_size=batch_size)
    listed = rows(tmp_path / "slice_scores.csv")
    assert list(listed[0]) == ["case", "plane", "axis", "slice_from_0", "position_mm", "kind", "anomaly_score"]
    kinds = {name: [(row["slice_from_0"], row["kind"]) for row in listed if row["case"] == name] for name in "abcd"}
    assert kinds == {
        "a": [("1", "unclear"), ("2", "abnormal"), ("3", "unclear"), ("4", "unclear"), ("5", "normal")],
        "b": [(f"{number}", "normal") for number in range(1, 6)],
        "c": [],
        "d": [("1", "unclear"), ("2", "abnormal"), ("3", "unclear"), ("4", "normal"), ("5", "normal")],
    }
    assert {(row["plane"], row["axis"]) for row in listed} == {("axial", "k")}
    assert [row["position_mm"] for row in listed if row["case"] == "a"] == ["4.0", "8.0", "12.0", "16.0", "20.0"]
    scores = {
        (source["case"], str(number)): score
        for source, scored in VOLUMES
        for number, score in enumerate(scored["slice_scores"]["axial"].tolist())
    }
    assert [float(row["anomaly_score"]) for row in listed] == [
        scores[row["case"], row["slice_from_0"]] for row in listed
    ]

    report = localisation(tmp_path)
    counted = [row for row in listed if row["kind"] != "unclear"]
    labels = [int(row["kind"] == "abnormal") for row in counted]
    assert (report["n_slices"], report["n_abnormal_slices"]) == (len(counted), 2) == (10, 2)
    assert (report["n_cases"], report["n_abnormal_cases"]) == (2, 1)  # by patient
    assert report["slice_auroc"] == pytest.approx(
        roc_auc_score(labels, [float(row["anomaly_score"]) for row in counted])
    )
    assert (report["slice_n_bootstrap"], report["slice_bootstrap_seed"]) == (20, 3)


def test_voxels_and_lesions_are_those_of_the_cases_that_can_be_compared(
    tmp_path: Path, score: Score, capsys: pytest.CaptureFixture[str]
) -> None:
    score.map_threshold.fill_(1.5)
    evaluate(LocalisationMetricsWriter(tmp_path, score, SLICER, 20), cases=VOLUMES)
    voxels, lesions = VoxelMetrics(), LesionMetrics()
    for source, scored in (VOLUMES[0], VOLUMES[1], VOLUMES[3]):
        truth = source.get("original_lesion", torch.zeros(SIZE))
        inside = scored["foreground"] > 0
        voxels.update(scored["anomaly_map"], truth, inside)
        lesions.update(scored["anomaly_map"], truth, (2, 2, 4), inside)
    report = localisation(tmp_path)
    for name, value in {**voxels.compute(1.5), **lesions.compute()}.items():
        assert report[name] == value, name
    assert (report["n_volumes"], report["n_abnormal_volumes"], report["n_abnormal_without_mask"]) == (3, 2, 1)
    assert report["found_by"] == "anomaly_mask"
    printed = capsys.readouterr().out
    assert "3 (1 normal, 2 abnormal)" in printed
    assert "Not in the report on slices and voxels: 1 abnormal cases without a mask." in printed


def test_each_lesion_is_listed_with_its_size_and_whether_it_was_found(tmp_path: Path, score: Score) -> None:
    score.map_threshold.fill_(1.5)
    evaluate(LocalisationMetricsWriter(tmp_path, score, SLICER, 20), cases=VOLUMES)
    listed = rows(tmp_path / "lesions.csv")
    assert list(listed[0]) == ["case", "lesion", "n_voxels", "diameter_mm", "map_value", "found"]
    assert [(row["case"], row["lesion"], row["n_voxels"]) for row in listed] == [("a", "1", "10"), ("d", "1", "16")]
    # 16 voxels of 16 mm3 are a ball of 7.88 mm
    assert float(listed[1]["diameter_mm"]) == pytest.approx(7.878, abs=1e-3)
    for row in listed:
        assert row["found"] == str(int(float(row["map_value"]) > 1.5))


@pytest.mark.parametrize(
    "cases", [[volume("b", 0), volume("c", 1)], [volume("b", 0), volume("e", 1, lesion())], [volume("c", 1)]]
)
def test_without_a_lesion_there_is_no_report_and_none_of_an_earlier_run(
    tmp_path: Path, score: Score, caplog: pytest.LogCaptureFixture, cases: list[Any]
) -> None:
    for name in ("localisation.json", "slice_scores.csv", "lesions.csv"):
        (tmp_path / name).write_text("old")
    with caplog.at_level("INFO"):
        evaluate(LocalisationMetricsWriter(tmp_path, score, SLICER), cases=cases)
    assert not list(tmp_path.iterdir())
    assert "no report on slices and voxels" in caplog.text


@pytest.mark.parametrize(
    "cases",
    [
        [VOLUMES[0], VOLUMES[3]],  # of one patient
        [volume("g", 1, lesion((2, 1))), volume("h", 1, lesion((3, 1)))],  # too small to count
    ],
)
def test_slices_of_one_patient_or_kind_have_no_metrics_but_voxels_have(
    tmp_path: Path, score: Score, caplog: pytest.LogCaptureFixture, cases: list[Any]
) -> None:
    score.map_threshold.fill_(1.5)
    evaluate(LocalisationMetricsWriter(tmp_path, score, SLICER), cases=cases)
    report = localisation(tmp_path)
    assert "slice_auroc" not in report
    assert report["n_abnormal_volumes"] == 2
    assert "No metrics of slices" in caplog.text
    assert rows(tmp_path / "slice_scores.csv")


def test_a_mask_that_was_not_resampled_as_its_image_is_refused(tmp_path: Path, score: Score) -> None:
    source, scored = volume("a", 1, lesion((2, 3)))
    source["lesion"] = source["lesion"][..., :5]
    with pytest.raises(ValueError, match=r"\(8, 8, 5\) and \(8, 8, 6\)\. Give the mask the resampling of the image"):
        evaluate(LocalisationMetricsWriter(tmp_path, score, SLICER), cases=[(source, scored)])


def test_a_second_run_counts_its_own_volumes_only(tmp_path: Path, score: Score) -> None:
    score.map_threshold.fill_(1.5)
    report = LocalisationMetricsWriter(tmp_path, score, SLICER, 20)
    written = []
    for _ in range(2):
        evaluate(report, cases=VOLUMES)
        written.append([(tmp_path / name).read_bytes() for name in ("localisation.json", "slice_scores.csv")])
    assert written[0] == written[1]
