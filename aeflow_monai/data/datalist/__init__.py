"""Turn the files of a data set into a list of dictionaries, or raise an error that names the remedy.

Each layout has its own small reader, and all readers fill the same list. `load_datalist` documents the layouts and the
order in which they are tried.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # names: __init__.pyi
