"""AE-Flow anomaly detection for medical images and volumes. Research use only, not a medical device."""

import lazy_loader

# The names in __init__.pyi are imported on first use: torch and MONAI take seconds to import, and the command's help
# needs neither.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
