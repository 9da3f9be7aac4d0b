"""What pytest passes over when it looks for examples in docstrings."""

# the app's files import MONAI Label, which has an environment of its own, and hold no examples
collect_ignore_glob = ["aeflow_monai/label/*.py"]
