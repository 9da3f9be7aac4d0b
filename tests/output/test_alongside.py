from collections.abc import Mapping
from threading import Barrier, get_ident
from typing import Any

import pytest

from aeflow_monai.output.alongside import Alongside


def test_both_sides_run_at_the_same_time_and_one_gives_the_result() -> None:
    meeting, threads = Barrier(2, timeout=20), []

    def meet(data: Mapping[str, Any]) -> dict[str, Any]:
        meeting.wait()
        threads.append(get_ident())
        return {**data, "n": data["n"] + 1}

    both = Alongside([meet, meet], aside=[meet, meet])
    assert both({"n": 0, "case": "a"}) == {"n": 2, "case": "a"}
    assert set(threads) > {get_ident()}


def test_keys_of_one_side_do_not_reach_the_other() -> None:
    begun = Barrier(2, timeout=20)

    def mark(data: dict[str, Any]) -> dict[str, Any]:
        data["mark"] = 1  # in its own copy
        begun.wait()
        return data

    def look(data: dict[str, Any]) -> dict[str, Any]:
        begun.wait()
        return {"seen": "mark" in data}

    given = {"case": "a"}
    assert Alongside([look], aside=[mark])(given) == {"seen": False}
    assert given == {"case": "a"}


def test_nothing_beside_is_nothing_more() -> None:
    assert Alongside([lambda data: {**data, "n": 1}])({"case": "a"}) == {"case": "a", "n": 1}


def test_an_error_waits_for_what_the_other_side_writes() -> None:
    done = []

    def fail(data: Any) -> None:
        raise ValueError(f"no picture of {data['case']}")

    def write(data: dict[str, Any]) -> dict[str, Any]:
        done.append(data["case"])
        return data

    for both in (Alongside([write], aside=[fail]), Alongside([fail], aside=[write])):
        with pytest.raises(RuntimeError, match="applying transform") as caught:
            both({"case": "a"})
        assert "no picture of a" in str(caught.value.__cause__)
    assert done == ["a", "a"]
