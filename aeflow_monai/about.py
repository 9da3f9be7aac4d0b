"""Facts of the package: its name, version, folder, and the versions of its dependencies."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["DISCLAIMER", "PACKAGE", "__version__", "versions"]

__version__ = "0.2.0"

PACKAGE = Path(__file__).parent  # folder of the package's code

DISCLAIMER = "Research use only. Not a medical device."

# Packages that can change the result of a run.
_PACKAGES = (
    *("torch", "monai", "numpy", "timm", "scipy", "scikit-learn", "pytorch-ignite", "nibabel", "itk", "pillow"),
    *("pydicom", "highdicom"),
)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that can change the result of a run."""
    found = {"aeflow_monai": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # an optional dependency
            continue
    return found
