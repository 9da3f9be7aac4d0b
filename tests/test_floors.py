"""The floors of the package: each wing knows only those below it, and no file name stands twice."""

import ast
import importlib
import inspect
from collections import Counter
from pathlib import Path

import pytest

import aeflow_monai

PACKAGE = Path(aeflow_monai.__file__).parent

# From the ground up. What stands on one floor does not know each other, nor anything above.
FLOORS = [
    {"about", "compression", "files", "geometry", "imports", "launch", "marks"}
    | {"printable", "processes", "progress", "result_files", "text_encoding"},
    {"file_digests", "locks", "result_tables"},
    {"errors"},
    {"network", "metrics"},
    {"score"},
    {"data", "output"},
    {"engine"},
    {"archive"},
    {"__init__"},
    {"label"},
    {"cli"},
]
# Likewise within two of them, but what stands on one floor there may know each other.
INNER = {
    "engine": [{"inference"}, {"config"}, {"runs"}, {"bundles"}, {"evaluation"}, {"training"}, {"verbs"}, {"__init__"}],
    "label": [
        {"background", "logs", "models", "names", "options", "temporary"},
        *({"studies"}, {"requests"}, {"tasks"}, {"app"}, {"__init__"}),
    ],
}
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [path.relative_to(PACKAGE).as_posix() for path in FILES]
MODULES = [
    ".".join(("aeflow_monai", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
    for path in FILES
    if path.relative_to(PACKAGE).parts[0] not in ("label", "cli")
]


def wing_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def package_of(path: Path) -> str:
    return ".".join(("aeflow_monai", *path.relative_to(PACKAGE).parent.parts))


def is_module(name: str) -> bool:
    path = PACKAGE / Path(*name.split(".")[1:])
    return path.with_suffix(".py").is_file() or path.is_dir()


def imported_by(path: Path) -> set[str]:
    """Modules of the package that a file imports, anywhere in it, by their full names; late ones too."""
    found = set()
    stub = path.with_suffix(".pyi")  # says what a package imports when it is first used
    for node in ast.walk(ast.parse((stub if stub.exists() else path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "aeflow_monai"}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level or stub.exists(), f"{path} imports relatively"
            module = ".".join(filter(None, (package_of(path) if node.level else "", node.module)))
            if module.split(".")[0] == "aeflow_monai":
                names = {f"{module}.{alias.name}" for alias in node.names}
                found |= (modules := {name for name in names if is_module(name)})
                found |= {module} if modules != names else set()
    return found


def wings(modules: set[str]) -> set[str]:
    return {[*module.split("."), "__init__"][1] for module in modules}


def test_each_wing_has_a_floor() -> None:
    assert {wing_of(path) for path in FILES} == set(FLOOR_OF)


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_no_arrow_up_or_aside(path: Path) -> None:
    own = wing_of(path)
    for other in wings(imported_by(path)) - {own}:
        assert FLOOR_OF[other] < FLOOR_OF[own], f"{path.name} in {own} imports {other}"


@pytest.mark.parametrize(
    ("holder", "path"),
    [(holder, path) for holder in INNER for path in sorted((PACKAGE / holder).rglob("*.py"))],
    ids=lambda value: getattr(value, "stem", value),
)
def test_no_arrow_up_within(holder: str, path: Path) -> None:
    floor_of = {name: floor for floor, names in enumerate(INNER[holder]) for name in names}
    own = path.relative_to(PACKAGE / holder).with_suffix("").parts[0]
    for module in imported_by(path):
        if module.startswith(f"aeflow_monai.{holder}."):
            other = module.split(".")[2]
            assert floor_of[other] <= floor_of[own], f"{path.name} in {own} imports {other}"


def test_no_cycle_between_files() -> None:
    module_of = {
        ".".join(("aeflow_monai", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
        for path in FILES
    }
    arrows = {name: imported_by(path) & module_of.keys() - {name} for name, path in module_of.items()}
    while leaves := {name for name, targets in arrows.items() if not targets & arrows.keys()}:
        arrows = {name: targets for name, targets in arrows.items() if name not in leaves}
    assert not arrows, f"these import each other in a circle, or stand above such: {sorted(arrows)}"


def test_no_file_name_stands_twice() -> None:
    for folder in (PACKAGE, PACKAGE.parent / "tests", PACKAGE.parent / "benchmarks"):
        counts = Counter(path.name for path in folder.rglob("*.py") if path.name not in ("__init__.py", "conftest.py"))
        assert [name for name, count in counts.items() if count > 1] == [], folder


def test_wings_are_seen() -> None:
    assert wings(imported_by(PACKAGE / "score/score.py")) == {"geometry", "score"}
    assert {"data", "engine", "network", "score"} <= wings(imported_by(PACKAGE / "__init__.py"))


@pytest.mark.parametrize("module", MODULES)
def test_module_and_its_public_names_are_documented(module: str) -> None:
    loaded = importlib.import_module(module)
    assert loaded.__doc__
    for name in getattr(loaded, "__all__", []):
        value = getattr(loaded, name)
        if inspect.isclass(value) or inspect.isroutine(value):
            assert value.__dict__.get("__doc__") if inspect.isclass(value) else value.__doc__, name


@pytest.mark.parametrize("module", MODULES)
def test_public_names_are_sorted_and_there(module: str) -> None:
    loaded = importlib.import_module(module)
    names = list(getattr(loaded, "__all__", []))
    assert len(set(names)) == len(names)
    # ruff's order: constants, classes, functions; or that of a package which imports them late
    assert names in (sorted(names, key=lambda name: (not name.isupper(), not name[:1].isupper(), name)), sorted(names))
    for name in names:
        assert hasattr(loaded, name)


def test_a_package_is_found_in_the_one_that_holds_it() -> None:
    packages = [module for module in MODULES if Path(PACKAGE.parent, *module.split("."), "__init__.py").is_file()]
    assert "aeflow_monai.data.datalist" in packages
    for module in packages[1:]:
        holder, _, name = module.rpartition(".")
        assert name in importlib.import_module(holder).__all__


def test_the_package_exports_about_a_dozen_names() -> None:
    names = [name for name in aeflow_monai.__all__ if not inspect.ismodule(getattr(aeflow_monai, name))]
    assert 12 <= len(names) <= 16
