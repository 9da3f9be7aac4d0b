"""The command `aeflow`."""
