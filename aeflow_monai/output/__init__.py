"""What a user gets: maps and masks in the geometry of the input, pictures, profiles, and what viewers show."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # names: __init__.pyi
