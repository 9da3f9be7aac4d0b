"""The version of the package and of the bundle."""

__version__ = "0.1.0"
