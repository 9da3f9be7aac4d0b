import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from report_results import ELEMENT, FORMULA, MODEL, SCRIPT, write_results

from aeflow_monai.file_digests import sha256_of
from aeflow_monai.output.report import PictureBudget, write_report
from aeflow_monai.output.report.run_tables import read_run
from aeflow_monai.result_tables import Table


def data(page: Path) -> dict[str, object]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(encoding="utf-8"))
    assert found
    content: dict[str, object] = json.loads(found[1])
    return content


def test_the_page_holds_cases_pictures_and_model(tmp_path: Path) -> None:
    page = write_report(tmp_path, write_results(tmp_path), MODEL)
    assert page == tmp_path / "report.html"
    content = data(page)
    assert (content["kind"], content["model"]) == ("evaluation", MODEL)
    cases = {case["case"]: case for case in content["cases"]}  # type: ignore[attr-defined]
    assert len(cases) == 60
    assert {SCRIPT, ELEMENT, FORMULA} <= cases.keys() == content["pictures"].keys()  # type: ignore[attr-defined]
    assert "Research use only" in page.read_text()


def test_no_name_becomes_an_element(tmp_path: Path) -> None:
    text = write_report(tmp_path, write_results(tmp_path), MODEL).read_text(encoding="utf-8")
    assert SCRIPT not in text
    assert ELEMENT not in text
    assert text.count("<script") == text.count("</script") == 2  # the data and the page's own


def test_folders_of_files_are_not_told(tmp_path: Path) -> None:
    assert "secret" not in write_report(tmp_path, write_results(tmp_path), MODEL).read_text(encoding="utf-8")


def test_written_again_from_the_folder_it_is_the_same(tmp_path: Path) -> None:
    before = sha256_of(write_report(tmp_path, write_results(tmp_path), MODEL))
    assert sha256_of(write_report(tmp_path)) == before


def test_without_an_earlier_report_there_are_no_pictures_but_the_tables(tmp_path: Path) -> None:
    write_results(tmp_path, labelled=False)
    content = data(write_report(tmp_path))
    assert (content["kind"], content["pictures"], len(content["cases"])) == ("inference", {}, 60)  # type: ignore[arg-type]


def test_overlays_stand_in_for_pictures_that_no_report_has(tmp_path: Path) -> None:
    write_results(tmp_path, labelled=False)
    for number in (5, 7):
        Image.new("RGB", (1900, 500)).save(tmp_path / f"case_{number:03d}_overlay.png")
    content = data(write_report(tmp_path))
    assert content["pictures"].keys() == {"case_005", "case_007"}  # type: ignore[attr-defined]
    assert data(write_report(tmp_path)) == content


def test_a_damaged_report_is_written_anew(tmp_path: Path) -> None:
    write_results(tmp_path)
    page = write_report(tmp_path)
    page.write_text(page.read_text()[:5000])
    assert len(data(write_report(tmp_path))["cases"]) == 60  # type: ignore[arg-type]


def test_a_page_of_others_is_not_written_over(tmp_path: Path) -> None:
    write_results(tmp_path)
    (tmp_path / "report.html").write_text("<html>mine</html>")
    with pytest.raises(ValueError, match=r"report\.html is no report of aeflow_monai, and would be lost"):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_text() == "<html>mine</html>"


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("scores.csv", lambda text: text.replace("anomaly_score", "score", 1), "the column 'anomaly_score' is missing"),
        ("scores.csv", lambda text: text.replace(",2.0,", ",two,", 1), "could not convert string to float: 'two'"),
        ("scores.csv", lambda text: text + "\udcff", "can't decode byte"),
        ("scores.csv", lambda text: "", "it is empty"),
        ("scores.csv", lambda text: text[:-1], "line 61 was cut"),
        ("scores.csv", lambda text: text[:-60], "line 61 was cut"),
        ("scores.csv", lambda text: text[:30], "line 1 was cut"),
        ("scores.csv", lambda text: text.replace(",", ";"), "the column 'case' is missing"),
        ("scores.csv", lambda text: text.replace("\ncase_005,", "\ncase_005", 1), r"line 7 has \d+ of \d+ cells"),
        ("scores.csv", lambda text: text.replace("\ncase_005,", "\ncase_005,,", 1), r"line 7 has \d+ of \d+ cells"),
        ("scores.csv", lambda text: text.replace("\ncase_005,", '\n"case_005,', 1), "unexpected end of data"),
        ("failures.csv", lambda text: "", "it is empty"),
        ("failures.csv", lambda text: text[:-10], "line 2 was cut"),
        ("lesions.csv", lambda text: text[:-1], "line 4 was cut"),
        ("run.json", lambda text: text[:-10], "no JSON"),
        ("localisation.json", lambda text: text[:-10], "no JSON"),
        ("metrics.json", lambda text: text.replace("0.", "NaN, 0.", 1), "no JSON"),
        ("metrics.json", lambda text: re.sub(r'"auroc": [\d.]+', '"auroc": NaN', text), "not JSON compliant"),
        ("metrics.json", lambda text: text.replace("auroc_ci95", "x"), "auroc_ci95 is missing"),
    ],
)
def test_damaged_tables_are_named(tmp_path: Path, name: str, damage: Callable[[str], str], message: str) -> None:
    write_results(tmp_path)
    path = tmp_path / name
    path.write_text(damage(path.read_text("utf-8")), "utf-8", errors="surrogateescape")
    with pytest.raises(ValueError, match=message) as refused:
        write_report(tmp_path)
    assert str(refused.value).startswith(str(path))


def test_tables_that_lack_cases_are_refused(tmp_path: Path) -> None:
    write_results(tmp_path)
    record = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**record, "n_cases": 99}))
    with pytest.raises(ValueError, match=r"scores\.csv and failures\.csv in .* have \d+ cases; the run had 99"):
        write_report(tmp_path)


def test_a_table_of_another_model_is_refused(tmp_path: Path) -> None:
    write_results(tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    (tmp_path / "metrics.json").write_text(json.dumps({**metrics, "threshold": metrics["threshold"] + 0.1}))
    with pytest.raises(ValueError, match=r"has another threshold than its metrics\.json, .*: it is of another model"):
        write_report(tmp_path)


def test_a_table_that_lacks_lesions_is_refused(tmp_path: Path) -> None:
    write_results(tmp_path)
    lines = (tmp_path / "lesions.csv").read_text("utf-8").splitlines(keepends=True)
    (tmp_path / "lesions.csv").write_text("".join(lines[:-1]), "utf-8")
    with pytest.raises(ValueError, match=r"lesions\.csv in .* has 2 lesions; the run had 3\. Restore it, or run again"):
        write_report(tmp_path)


def test_an_evaluation_of_an_earlier_version_lists_no_lesions(tmp_path: Path) -> None:
    write_results(tmp_path)
    (tmp_path / "lesions.csv").unlink()
    with pytest.raises(ValueError, match=r"lesions\.csv in .* has 0 lesions; the run had 3\."):
        write_report(tmp_path)
    found = json.loads((tmp_path / "localisation.json").read_text())
    del found["found_by"]
    (tmp_path / "localisation.json").write_text(json.dumps(found))
    assert data(write_report(tmp_path))["lesions"] == []


def test_no_part_of_a_folder_is_told_whatever_its_name(tmp_path: Path) -> None:
    write_results(tmp_path)
    first, second = "/data/Mueller, Hans/a, b.nii.gz", "/data/Mueller, Hans/c.nii.gz"
    table = Table(tmp_path / "failures.csv", ["case", "file", "stage", "message"])
    table.append({"case": "one", "file": first, "stage": "read", "message": f"Expected an image in {first}; got none."})
    table.append({"case": "two", "file": f"{first}, {second}", "stage": "read", "message": f"{second} differs."})
    table.finish()
    page = write_report(tmp_path, {}, MODEL)
    failures: list[dict[str, str]] = data(page)["failures"]  # type: ignore[assignment]
    assert [(one["file"], one["message"]) for one in failures] == [
        ("a, b.nii.gz", "Expected an image in a, b.nii.gz; got none."),
        ("a, b.nii.gz, c.nii.gz", "c.nii.gz differs."),
    ]
    assert "Mueller" not in page.read_text("utf-8")


def test_a_damaged_overlay_is_left_out(tmp_path: Path) -> None:
    write_results(tmp_path, labelled=False)
    (tmp_path / "case_005_overlay.png").write_bytes(b"no picture")
    assert data(write_report(tmp_path))["pictures"] == {}


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no scores\.csv in"):
        write_report(tmp_path)


def test_500_cases_with_all_pictures_that_are_kept_stay_below_15_mb(tmp_path: Path) -> None:
    pictures = write_results(tmp_path, 500)
    missing = PictureBudget().limit - sum(len(json.dumps(kept)) for kept in pictures.values())
    pictures[SCRIPT]["more"] = {"as large as all may be": "+" * missing}
    page = write_report(tmp_path, pictures, MODEL)
    assert 11_500_000 < page.stat().st_size < 15_000_000


def test_the_page_of_an_archive_has_the_most_anomalous_cases(tmp_path: Path) -> None:
    numbers = [number * 3 % 10_003 for number in range(10_003)]  # all of them, in another order
    lines = [f"case {number},{number},{int(number > 9_000)}" for number in numbers]
    (tmp_path / "scores.csv").write_text("\n".join(["case,anomaly_score,prediction", *lines, ""]))
    run = read_run(tmp_path)
    assert [case["anomaly_score"] for case in run["cases"]] == list(range(10_002, 2, -1))
    assert (run["run"]["n_scored"], run["run"]["n_above"]) == (10_003, 1_002)
