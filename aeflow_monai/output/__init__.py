"""Outputs for the user: maps and masks in the geometry of the input, pictures, profiles, and viewer results."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # names: __init__.pyi
