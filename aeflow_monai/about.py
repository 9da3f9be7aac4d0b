"""What the package says of itself, and of those that it needs."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["DISCLAIMER", "PACKAGE", "__version__", "versions"]

__version__ = "0.2.0"

PACKAGE = Path(__file__).parent  # the folder of its code

DISCLAIMER = "Research use only. Not a medical device."

# Packages that decide what comes of a run.
_PACKAGES = (
    *("torch", "monai", "numpy", "timm", "scipy", "scikit-learn", "pytorch-ignite", "nibabel", "itk", "pillow"),
    *("pydicom", "highdicom"),
)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what comes of a run."""
    found = {"aeflow_monai": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # of what is not needed everywhere
            continue
    return found
