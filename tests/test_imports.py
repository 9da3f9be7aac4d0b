import ast
import importlib
import inspect
from pathlib import Path
from types import ModuleType

import pytest

import aeflow_monai

PACKAGE = Path(aeflow_monai.__file__).parent
FILES = {path.stem: [path] for path in PACKAGE.glob("*.py") if path.stem != "__init__"}
FOLDERS = {path.parent.name: sorted(path.parent.glob("*.py")) for path in PACKAGE.glob("*/__init__.py")}
MODULES = sorted({**FILES, **FOLDERS})

# Which others of the package a file, or a folder of files, may import: what is learned from knows nothing of what
# learns from it.
MAY_IMPORT: dict[str, set[str]] = {
    "aeflow": {"flow", "encoder", "decoder"},
    "alongside": set(),
    "calibration": {"aeflow", "position", "scoring", "slicing", "thresholds"},
    "checkpoint": set(),
    "checks": {"grids"},
    "cli": {"label", "version", "workflow", "writers"},
    "datalist": set(),
    "decoder": set(),
    "encoder": set(),
    "feature_norm": set(),
    "flow": {"feature_norm"},
    "grids": set(),
    "guard": {"workflow", "writers"},
    "evaluation": {"localisation", "metrics", "scoring", "slicing", "writers"},
    "handlers": {"calibration", "scoring", "slicing", "thresholds"},
    "inferer": {"slicing"},
    "labelled": set(),
    "lesions": set(),
    "label": {"__init__", "datalist", "localisation", "scoring", "version", "viewer", "workflow", "writers"},
    "loading": {"grids"},
    "localisation": {"metrics"},
    "loss": set(),
    "maps": {"scoring", "slicing"},
    "metrics": set(),
    "overlay": {"writers"},
    "phantom": set(),
    "position": {"slicing"},
    "prepare": {"datalist", "guard", "slicing", "version", "writers"},
    "prior": set(),
    "profile": {"overlay", "writers"},
    "scoring": {"aeflow", "checkpoint", "flow", "position", "prior", "slicing", "ssim"},
    "slices": {"slicing"},
    "slicing": set(),
    "ssim": set(),
    "thresholds": {"scoring"},
    "transforms": {"scoring"},
    "version": set(),
    "viewer": {"inferer", "profile", "scoring", "slicing", "writers"},
    "workflow": set(),
    "writers": set(),
}


def imported_by(module: str) -> set[str]:
    """Others of the package that a file or folder imports, anywhere in it; "__init__" is the package itself."""
    files = {**FILES, **FOLDERS, "__init__": [PACKAGE / "__init__.py"]}[module]
    found = set()
    for node in (node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "aeflow_monai" if node.level else ""
            source = ".".join(part for part in (base, node.module) if part)
            names = [f"{source}.{alias.name}" for alias in node.names] if source == "aeflow_monai" else [source]
        for name in names:
            package, _, rest = name.partition(".")
            if package == "aeflow_monai":
                file = rest.partition(".")[0]
                found.add(file if file in MODULES else "__init__")
    return found - {module}


def public_names(module: ModuleType) -> list[str]:
    return list(getattr(module, "__all__", []))


def test_each_file_is_known() -> None:
    assert set(MODULES) == set(MAY_IMPORT)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module: str) -> None:
    assert imported_by(module) <= MAY_IMPORT[module]


def test_package_imports_are_seen() -> None:
    assert imported_by("aeflow") == {"flow", "encoder", "decoder"}
    assert {"aeflow", "flow", "version"} <= imported_by("__init__")


@pytest.mark.parametrize("module", MODULES)
def test_module_and_its_public_names_are_documented(module: str) -> None:
    loaded = importlib.import_module(f"aeflow_monai.{module}")
    assert loaded.__doc__ or module == "version"
    names = public_names(loaded)
    assert names == sorted(names) or module == "flow"  # SUBNETS stands first
    for name in names:
        value = getattr(loaded, name)
        if inspect.isclass(value) or inspect.isroutine(value):
            home = f"aeflow_monai.{module}"
            assert value.__module__ == home or value.__module__.startswith(f"{home}."), f"{name} belongs elsewhere"
            assert value.__dict__.get("__doc__") if inspect.isclass(value) else value.__doc__, name


def test_package_names_are_sorted_and_there() -> None:
    names = public_names(aeflow_monai)
    assert names == sorted(names)
    assert len(set(names)) == len(names)
    for name in names:
        value = getattr(aeflow_monai, name)
        assert isinstance(value, str) or inspect.getdoc(value), name


def test_package_names_are_public_in_their_own_file() -> None:
    for name in public_names(aeflow_monai):
        if name != "__version__":
            home = importlib.import_module(getattr(aeflow_monai, name).__module__)
            assert name in public_names(home), name
