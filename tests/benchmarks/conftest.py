"""What the tests of the benchmarks share: their modules, imported as the scripts import each other."""

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"


@pytest.fixture
def imported(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports a module of the benchmarks."""
    for folder in (BENCHMARKS, BENCHMARKS / "detection"):
        monkeypatch.syspath_prepend(str(folder))
    return importlib.import_module
