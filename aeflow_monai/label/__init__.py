"""The MONAI Label app: anomaly maps in a reader's viewer, and a worklist sorted by anomaly.

`aeflow label --studies <folder>` starts it. Its files need the extra `label`; importing this package does not.
"""

__all__: list[str] = []
