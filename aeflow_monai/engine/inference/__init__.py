"""The detector, and the inference on slices and volumes, in torch or by a faster runtime."""
