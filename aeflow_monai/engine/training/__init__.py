"""Handlers of a training, and the calibration on another site."""
