"""The benchmarks import each other one way only, and no file of theirs has the name of another, or of the package's."""

import ast
from collections import Counter
from pathlib import Path

import aeflow_monai

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"
FILES = sorted(BENCHMARKS.rglob("*.py"))


def imported_by(path: Path) -> set[str]:
    """Benchmarks that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module))
    return found & {file.stem for file in FILES}


def test_no_cycle() -> None:
    arrows = {path.stem: imported_by(path) for path in FILES}
    assert arrows["shared"] == set()
    while leaves := {name for name, targets in arrows.items() if not targets & arrows.keys()}:
        arrows = {name: targets for name, targets in arrows.items() if name not in leaves}
    assert not arrows, f"these import each other in a circle, or stand above such: {sorted(arrows)}"


def test_no_file_name_stands_twice() -> None:
    files = [*FILES, *Path(aeflow_monai.__file__).parent.rglob("*.py")]
    counts = Counter(path.name for path in files if path.name != "__init__.py")
    assert [name for name, count in counts.items() if count > 1] == []
