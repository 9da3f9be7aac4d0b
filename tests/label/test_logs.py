"""What the log keeps of lines that libraries write: no names of files, and one line for each event."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest

# which MONAI Label imports
pytestmark = pytest.mark.filterwarnings("ignore:The distutils package:DeprecationWarning")

NAME = "/data/DOE^JANE_19700101.nii.gz"


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What the server's log would hold; all loggers of this process are as before afterwards."""
    from aeflow_monai.label.logs import keep_log_discreet

    loggers = [logging.getLogger(), *map(logging.getLogger, list(logging.root.manager.loggerDict))]
    before = {handler: list(handler.filters) for logger in loggers for handler in logger.handlers}
    stream = io.StringIO()
    handlers = [logging.StreamHandler(stream), logging.StreamHandler(io.StringIO())]  # as the console and the file
    level = logging.root.level
    logging.root.handlers[:0] = handlers
    logging.root.setLevel(logging.INFO)
    keep_log_discreet()
    yield stream
    logging.captureWarnings(False)
    logging.root.setLevel(level)
    for handler in handlers:
        logging.root.removeHandler(handler)
    for handler, filters in before.items():
        handler.filters[:] = filters


@pytest.mark.parametrize("name", ["monailabel.datastore.local", "uvicorn.error", "asyncio"])
def test_an_error_is_its_kind_and_place(log: io.StringIO, name: str) -> None:
    try:
        raise FileNotFoundError(NAME)
    except FileNotFoundError:
        logging.getLogger(name).exception("Exception in ASGI application\n")
    assert log.getvalue().count("\n") == 1
    assert "FileNotFoundError in test_logs, line " in log.getvalue()
    assert "DOE" not in log.getvalue()


def test_what_others_say_is_left_out_and_of_errors_the_message(log: io.StringIO) -> None:
    logger = logging.getLogger("monailabel.transform.writer")
    logger.info(f"Saving {NAME}")
    logger.warning(f"Overwriting {NAME}")
    assert log.getvalue() == ""
    logger.error(f"Cannot write {NAME}\nINFO forged")
    assert log.getvalue().startswith("An error of test_logs, line ")
    assert log.getvalue().count("\n") == 1
    assert "DOE" not in log.getvalue()


def test_own_lines_stay_and_are_one_each(log: io.StringIO) -> None:
    logging.getLogger("aeflow_monai.label.app").info("anomaly_mask answered\nINFO forged \u202e.")
    assert log.getvalue() == "anomaly_mask answered\\nINFO forged \\u202e.\n"
