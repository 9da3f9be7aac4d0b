"""Files on disk become a list of dictionaries, or an error that says what to do.

Each layout of a data set is one small reader into the same list; `load_datalist` tells which are known and in which
order they are looked for.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # names: __init__.pyi
