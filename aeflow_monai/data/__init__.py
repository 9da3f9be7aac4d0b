"""Data pipeline: from files to the slices that the network processes, and back to the grid of a volume."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # names: __init__.pyi
