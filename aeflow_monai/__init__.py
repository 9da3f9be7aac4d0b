"""AE-Flow anomaly detection for medical images and volumes. Research use only, not a medical device."""

import lazy_loader

# What __init__.pyi names is imported when it is first used: torch and MONAI take seconds, and the command's help needs
# neither.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
