"""The detector, and how slices and volumes are scored: in torch, or by a faster runtime."""
