"""The bundle that a training writes, its model card, and the trained model in Python and as one file."""
