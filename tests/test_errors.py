import csv
import errno
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose, Lambdad

from aeflow_monai.errors import CaseFailures, Failure, FailureLog, describe_error, failure_of, file_of, root_cause
from aeflow_monai.printable import first_line

DATA = [{"case": name, "image": f"{name}.nii.gz"} for name in "abcde"]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_nothing_is_written_where_nothing_failed(tmp_path: Path) -> None:
    failures = FailureLog(tmp_path / "failures.csv")
    failures.start()
    with failures.catching(DATA[0], "read"):
        pass
    failures.raise_if_any(1)
    assert not list(tmp_path.iterdir())
    assert len(failures) == 0


def test_each_failure_is_written_and_logged_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    failures = FailureLog(tmp_path / "deep/failures.csv")
    for number, item in enumerate(DATA[:2], start=1):
        with caplog.at_level(logging.WARNING), failures.catching(item, "read"):
            raise ValueError("Two\n  lines, and a comma.")
        assert len(rows(failures.table.unfinished)) == len(failures) == number
    assert not failures.path.exists()
    failures.finish()
    assert rows(failures.path)[1] == {
        "case": "b",
        "file": "b.nii.gz",
        "stage": "read",
        "message": "Two lines, and a comma.",
    }
    assert caplog.messages == [f"Case {name} failed: Two" for name in "ab"]
    failures.start()
    assert failures.path.exists()  # until this run ends
    failures.finish()
    assert not failures.path.exists()
    assert len(failures) == 0


def test_what_the_user_stops_is_no_failure_of_a_case(tmp_path: Path) -> None:
    failures = FailureLog(tmp_path / "failures.csv")
    with pytest.raises(KeyboardInterrupt), failures.catching(DATA[0], "read"):
        raise KeyboardInterrupt
    assert len(failures) == 0


def test_without_a_table_there_is_the_summary_only() -> None:
    failures = FailureLog(None)
    failures.start()
    with failures.catching(DATA[0], "read"):
        raise ValueError("wrong")
    with pytest.raises(CaseFailures, match=r"^1 of 2 cases failed:\n- a \(a.nii.gz, read\): wrong$"):
        failures.raise_if_any(2)


def test_all_files_of_a_case_are_named(tmp_path: Path) -> None:
    failures = FailureLog(tmp_path / "failures.csv")
    with failures.catching({"case": "a", "image": ["t1.nii", "t2.nii"]}, "read"):
        raise ValueError("wrong")
    failures.finish()
    assert rows(failures.path)[0]["file"] == "t1.nii, t2.nii"


def test_the_summary_is_short(tmp_path: Path) -> None:
    failures = FailureLog(tmp_path / "failures.csv")
    for number in range(30):
        with failures.catching({"case": f"{number}", "image": f"{number}.png"}, "read"):
            raise ValueError("wrong\nin detail")
    with pytest.raises(CaseFailures) as raised:
        failures.raise_if_any(32)
    lines = str(raised.value).splitlines()
    assert lines[:2] == ["30 of 32 cases failed:", "- 0 (0.png, read): wrong"]
    assert lines[-2] == "- and 10 more"
    assert lines[-1] == f"The outputs of the other 2 are in {tmp_path}. {failures.path} lists all that failed."
    assert len(lines) == 23
    with pytest.raises(CaseFailures, match=r"^All 30 cases failed:\n(.*\n)+.*failures\.csv lists all that failed\.$"):
        failures.raise_if_any(30)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_an_error_of_the_disk_ends_the_run(tmp_path: Path, number: int) -> None:
    failures = FailureLog(tmp_path / "failures.csv")
    with pytest.raises(RuntimeError) as raised, failures.catching(DATA[0], "score"):
        Compose([raising(OSError(number, "the disk"))])(DATA[0])
    assert root_cause(raised.value).errno == number
    assert len(failures) == 0
    with failures.catching(DATA[0], "score"):
        raise OSError(errno.ENOENT, "this file only")
    assert len(failures) == 1


def test_a_failure_names_the_file_of_a_batch() -> None:
    image = MetaTensor(torch.zeros(1, 1, 2, 2), meta={"filename_or_obj": ["a.nii.gz"]})
    failure = failure_of({"case": ["a"], "image": image}, "score", ValueError("wrong"))
    assert failure == Failure("a", "a.nii.gz", "score", "wrong")
    assert failure_of({"image": "a.nii.gz"}, "read", ValueError("wrong")).case == "a.nii.gz"


@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        ({"filename_or_obj": "a.nii"}, "a.nii"),
        ({"filename_or_obj": Path("a.nii")}, "a.nii"),
        ({"filename_or_obj": ["a.nii", "b.nii"]}, "a.nii, b.nii"),
        ({"filename_or_obj": ""}, "the image"),
        ({}, "the image"),
    ],
)
def test_the_file_of_an_image(meta: dict[str, Any], expected: str) -> None:
    assert file_of(MetaTensor(torch.zeros(1, 2, 2), meta=meta), "the image") == expected


def test_what_was_not_loaded_has_no_file() -> None:
    assert file_of(torch.zeros(1), "the image") == "the image"
    assert file_of("a.nii") == ""


# --- what lies below MONAI's wrapping ---------------------------------------------------------------------------------


def raising(error: BaseException) -> Callable[[Any], Any]:
    """A transform that fails."""

    def fail(data: Any) -> Any:
        raise error

    return fail


def caught(call: Callable[[], Any]) -> BaseException:
    with pytest.raises(Exception) as raised:  # noqa: PT011
        call()
    return raised.value


@pytest.mark.parametrize("depth", [1, 3])
def test_the_root_cause_is_below_what_monai_wraps_around_it(depth: int) -> None:
    error, transform = ValueError("wrong"), None
    for _ in range(depth):
        transform = Compose([transform or raising(error)])
    wrapped = caught(lambda: transform({}))
    assert type(wrapped) is RuntimeError
    assert "wrong" not in str(wrapped)
    assert root_cause(wrapped) is error
    assert describe_error(wrapped) == "wrong"


def test_the_root_cause_of_a_config_is_that_of_its_expression() -> None:
    wrapped = caught(lambda: ConfigParser({"number": "$1 / 0"}).get_parsed_content("number"))
    assert type(root_cause(wrapped)) is ZeroDivisionError


def test_the_root_cause_lies_no_deeper_than_monais_own_errors() -> None:
    def explain(data: Any) -> Any:
        try:
            raise KeyError("x")
        except KeyError as error:
            raise ValueError("Name a column x.") from error

    assert str(root_cause(caught(lambda: Compose([explain])({})))) == "Name a column x."
    assert str(root_cause(caught(lambda: explain({})))) == "Name a column x."


def test_an_error_without_a_cause_is_its_own() -> None:
    bare = ValueError("never raised")
    error = caught(lambda: Lambdad("image", raising(bare))({}))  # raised by MONAI itself: the key is missing
    assert type(error) is KeyError
    assert root_cause(error) is error
    assert root_cause(bare) is bare


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("It is empty."), "It is empty."),
        (FileNotFoundError("There is no file."), "There is no file."),
        (RuntimeError("  two\nlines "), "two\nlines"),
        (KeyError("image"), "KeyError: 'image'"),
        (TypeError("unexpected argument"), "TypeError: unexpected argument"),
        (EOFError(), "EOFError"),
        (ValueError(" "), "ValueError"),
    ],
)
def test_a_message_has_its_type_where_it_says_too_little(error: Exception, expected: str) -> None:
    assert describe_error(error) == expected


@pytest.mark.parametrize(
    ("message", "line"), [("\n  one\ntwo", "one"), ("", ""), (" \n ", ""), (ValueError("a\nb"), "a")]
)
def test_the_first_line_is_the_first_that_says_something(message: object, line: str) -> None:
    assert first_line(message) == line
