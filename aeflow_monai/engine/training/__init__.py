"""Handlers of a training, and the calibration for another site."""
