"""Threads that wait: what `aeflow` sets before torch is there."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import os, sys
from aeflow_monai.cli.main import main
assert "torch" not in sys.modules
main([])
print(os.environ.get("GOMP_SPINCOUNT"))
"""


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_they_spin_for_a_short_time_unless_the_user_says_otherwise(given: dict[str, str], expected: str) -> None:
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in names} | given
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == expected
