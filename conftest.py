"""What pytest passes over where it cannot be imported."""

import importlib.util

# the app's files import MONAI Label, which has an environment of its own (the extra `label`)
if importlib.util.find_spec("monailabel") is None:
    collect_ignore = [
        f"aeflow_monai/label/{name}.py"
        for name in (
            "app",
            "batch",
            "errors",
            "evaluation",
            "infer",
            "labels",
            "records",
            "scoring",
            "strategies",
            "train",
        )
    ]
