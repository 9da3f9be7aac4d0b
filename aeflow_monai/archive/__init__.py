"""Archives: more studies than one process can score, in shards that can stop, resume and be merged."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # names: __init__.pyi
