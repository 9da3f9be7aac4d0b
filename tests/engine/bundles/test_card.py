from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from scored_cases import CASES, evaluate

from aeflow_monai import Score, __version__, load_datalist
from aeflow_monai.engine.bundles.card import _SHOWN, CardWriter, add_evaluation, facts_of_data, hash_of_list, write_card
from aeflow_monai.engine.config.stored_model import model_path, read_model
from aeflow_monai.engine.evaluation.detection_metrics import DetectionMetricsWriter
from aeflow_monai.engine.runs.duplicates import count_seen, fingerprints_of
from aeflow_monai.files import read_json, write_json
from aeflow_monai.metrics import LesionMetrics, VoxelMetrics, detection_report, slice_report

FACTS = {
    "data": {"trained on: cases": 40, "trained on: SHA-256 of the list": "55fc7afe8187e168"},
    "seed": 3,
    "versions": {"aeflow_monai": "0.2.0", "torch": "2.9"},
    "specificity": 0.95,
    "options": ["`epochs`: 3 (default null)"],
}


def card_of(folder: Path, rank: tuple[int, int], **facts: Any) -> str:
    score = Score()
    score.case_rank.copy_(torch.tensor(rank))
    for name, value in (("case_threshold", 1.25), ("slice_threshold", 2.5), ("map_threshold", 3.0)):
        getattr(score, name).fill_(value)
    write_card(folder, score, {**FACTS, **facts})
    return (folder / "docs/README.md").read_text(encoding="utf-8")


def test_the_card_names_data_seed_versions_options_and_thresholds(tmp_path: Path) -> None:
    card = card_of(tmp_path, (19, 19))
    assert "| trained on: cases | 40 |" in card
    assert "| trained on: SHA-256 of the list | 55fc7afe8187e168 |" in card
    assert "Seed 3. Versions: aeflow_monai 0.2.0, torch 2.9." in card
    assert "- `epochs`: 3 (default null)" in card
    for line in ("| case threshold | 1.25 |", "| slice threshold | 2.5 |", "| map threshold | 3 |"):
        assert line in card
    assert "Research use only. Not a medical device." in card
    assert "## Limits" in card


def test_the_card_says_which_specificity_can_be_expected(tmp_path: Path) -> None:
    enough = card_of(tmp_path, (19, 19))
    assert "set on 19 held-out patients: 95.0% of new normal cases" in enough
    assert "is not reliable" not in enough
    few = card_of(tmp_path, (3, 3))
    assert "Requested specificity: 95%." in few
    assert "set on 3 held-out patients: 75.0% of new normal cases" in few
    assert "takes 19 held-out patients; with fewer, the largest of their scores is the threshold" in few


def test_without_other_options_the_card_says_so(tmp_path: Path) -> None:
    assert "## Options that differ from the defaults\nNone.\n" in card_of(tmp_path, (19, 19), options=[])


def test_the_card_of_a_training_is_of_that_training(trained: Path) -> None:
    card = (trained / "docs/README.md").read_text()
    stored = read_model(model_path(trained))
    for name, value in stored.card["data"].items():
        assert f"| {name} | {value} |" in card
    assert {"trained on: cases": 5, "held out: cases": 1}.items() <= stored.card["data"].items()
    assert all(f"{name} {version}" in card for name, version in stored.card["versions"].items())
    assert f"aeflow_monai {__version__}" in card
    options = card.partition("## Options that differ from the defaults\n")[2].partition("\n\n")[0].splitlines()
    assert options == [
        "- `epochs`: 3 (default null)",
        "- `batch_size`: 8 (default 16)",
        "- `learning_rate`: 0.001 (default 0.002)",
        "- `image_size`: [64, 64] (default [128, 128])",
        "- `lesion_copies`: 0 (default null)",
        "- `acquisition_copies`: 0 (default 1)",
        "- `network_def#network#n_steps`: 2 (default 8)",
        "- `network_def#network#hidden_channels`: 8 (default null)",
        "- `slicer#min_foreground`: 0.0 (default 0.05)",
    ]
    assert f"| case threshold | {float(stored.state['score.case_threshold']):.4g} |" in card
    assert "set on 1 held-out patients: 50.0%" in card


def test_each_evaluation_adds_its_table(tmp_path: Path) -> None:
    before = card_of(tmp_path, (19, 19))
    report = {"n_normal": 3, "n_abnormal": 4, "auroc": 0.98765, "auroc_ci95": [0.9, 1.0], "specificity": 1.0, "x": 2}
    add_evaluation(tmp_path, "7 cases", report)
    add_evaluation(tmp_path, "2 cases", {"slice_auroc": 0.5})
    after = (tmp_path / "docs/README.md").read_text()
    assert after.startswith(before.rstrip("\n"))
    first, second = after[len(before) :].strip().split("\n\n")
    header = ["| | |", "|---|---|"]
    rows = ["| n normal | 3 |", "| n abnormal | 4 |", "| auroc | 0.988 [0.900, 1.000] |", "| specificity | 1.000 |"]
    assert first.splitlines() == ["### 7 cases", *header, *rows]
    assert second.splitlines() == ["### 2 cases", *header, "| slice auroc | 0.500 |"]
    # one more evaluation of the same data takes the place of the first
    add_evaluation(tmp_path, "7 cases", {"auroc": 0.5})
    again = (tmp_path / "docs/README.md").read_text()
    first, *others = again[len(before) :].strip().split("\n\n")
    assert first == second
    assert [table.splitlines() for table in others] == [["### 7 cases", *header, "| auroc | 0.500 |"]]


def test_evaluations_that_end_at_the_same_time_lose_no_table(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    card = tmp_path / "docs/README.md"
    card.write_text("# Model card\n")
    titles = [f"{number} cases" for number in range(24)]
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(add_evaluation, tmp_path, title, {"auroc": 0.5}) for title in titles]:
            done.result()
    assert {line for line in card.read_text().splitlines() if line.startswith("### ")} == {f"### {t}" for t in titles}
    assert [path.name for path in card.parent.iterdir()] == ["README.md"]


def test_the_hash_of_a_list_knows_cases_patients_and_labels_but_no_path_or_order() -> None:
    items = [{"case": "a", "label": 0, "image": "/x/a.png"}, {"case": "b", "patient": "p", "label": 1, "image": "b"}]
    known = hash_of_list(items)
    assert hash_of_list([{**item, "image": "elsewhere"} for item in reversed(items)]) == known
    others = [hash_of_list([{**items[0], key: "z"}, items[1]]) for key in ("case", "patient", "label")]
    assert len({known, *others}) == 4
    assert facts_of_data(held_out=items)["held out: SHA-256 of the list, its beginning"] == known
    assert hash_of_list([{"case": "a"}]) != hash_of_list([{"case": "a", "label": 0}])  # without a label


def test_what_the_card_shows_the_reports_have() -> None:
    labels, scores = [0, 0, 1, 1], [0.1, 0.4, 0.3, 0.9]
    truth = torch.zeros(1, 6, 6, 3)
    truth[0, 2:4, 2:4, 1] = 1
    voxels, lesions = VoxelMetrics(), LesionMetrics()
    voxels.update(torch.rand(1, 6, 6, 3), truth)
    lesions.update(torch.rand(1, 6, 6, 3), truth, (1.0, 1.0, 1.0))
    known = {
        *detection_report(labels, scores, 0.5, calibrated_rank=(19, 19), n_bootstrap=5),
        *slice_report(labels, scores, ["a", "b", "c", "d"], n_bootstrap=5),
        *voxels.compute(0.5),
        *lesions.compute(),
    }
    assert [name for name in _SHOWN if name not in known] == []


@pytest.mark.parametrize("text", ["## Evaluations", "# Model card: AE-Flow anomaly detection"])
def test_the_card_has_its_parts(tmp_path: Path, text: str) -> None:
    assert text in card_of(tmp_path, (19, 19)).splitlines()


def test_images_that_begin_alike_are_not_the_same(tmp_path: Path) -> None:
    for name, end in (("a", b"1"), ("b", b"2")):
        (tmp_path / f"{name}.nii").write_bytes(bytes(2**17) + end)
    a, b = ({"case": name, "image": str(tmp_path / f"{name}.nii")} for name in "ab")
    assert count_seen(fingerprints_of([a, a, b]), fingerprints_of([a])) == 2
    absent = {"case": "c", "image": str(tmp_path / "absent.nii")}
    assert count_seen(*[fingerprints_of([absent])] * 2) == 0


def added_to(bundle: Path, trained: Path) -> list[str]:
    """Lines that a model card has got."""
    before = (trained / "docs/README.md").read_text()
    return (bundle / "docs/README.md").read_text().removeprefix(before.rstrip("\n")).strip().splitlines()


ITEMS = [{"case": name, "label": number % 2, "image": f"{name}.nii.gz"} for number, name in enumerate("abcd")]


def test_an_evaluation_without_reports_leaves_the_card_as_it_was(bundle: Path, trained: Path) -> None:
    evaluate(CardWriter(bundle, bundle / "results", ITEMS))
    assert added_to(bundle, trained) == []
    write_json(bundle / "results/localisation.json", {"n_volumes": 2, "slice_auroc": 0.75})
    expected = ["| | |", "|---|---|", "| slice auroc | 0.750 |"]
    for _ in range(2):  # the same evaluation has one table
        evaluate(CardWriter(bundle, bundle / "results", ITEMS))
        assert added_to(bundle, trained) == [f"### 4 cases, list {hash_of_list(ITEMS)}", *expected]


def test_the_card_says_how_many_cases_failed(bundle: Path, trained: Path) -> None:
    score = Score()
    score.case_threshold.fill_(1.0)
    report = DetectionMetricsWriter(bundle / "results/metrics.json", score, n_bootstrap=5)
    evaluate(report, CardWriter(bundle, bundle / "results", ITEMS), cases=CASES[:2])
    title, *table = added_to(bundle, trained)
    assert title == f"### 2 cases, list {hash_of_list(ITEMS)}; 2 more failed"
    assert "| n normal | 1 |" in table


def test_an_evaluation_on_images_that_the_model_knows_says_so(
    bundle: Path, volumes: Path, trained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_json(bundle / "results/localisation.json", {"n_volumes": 6, "slice_auroc": 0.75})
    write_json(bundle / "results/run.json", {"notes": ["of the run"]})
    evaluate(CardWriter(bundle, bundle / "results", load_datalist(volumes, "train")))
    notes = [
        "5 of 6 test images were trained on, so this is no test.",
        "1 of 6 test images were calibrated on, so neither AUROC nor specificity is a test.",
    ]
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == notes
    assert read_json(bundle / "results/run.json")["notes"] == ["of the run", *notes]
    title = added_to(bundle, trained)[0]
    assert "; 5 were trained on, so this is no test; 1 were calibrated on, so neither AUROC" in title
    caplog.clear()
    evaluate(CardWriter(bundle, bundle / "results", [{**i, "label": 1} for i in load_datalist(volumes, "train")]))
    assert "5 images that the test calls abnormal stood among the normals of the model." in caplog.text
    caplog.clear()
    evaluate(CardWriter(bundle, bundle / "results", load_datalist(volumes, "test")))
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_an_evaluation_ends_well_where_the_card_cannot_be_written(
    bundle: Path, trained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_json(bundle / "results/metrics.json", {"n": 2, "auroc": 0.75})
    (bundle / "docs").chmod(0o555)
    try:
        if _may_write(bundle / "docs"):
            pytest.skip("this user may write everywhere")
        evaluate(CardWriter(bundle, bundle / "results", ITEMS))
    finally:
        (bundle / "docs").chmod(0o755)
    assert "The model card was not completed: " in caplog.text
    assert added_to(bundle, trained) == []


def _may_write(folder: Path) -> bool:
    try:
        (folder / "probe").touch()
    except OSError:
        return False
    (folder / "probe").unlink()
    return True
