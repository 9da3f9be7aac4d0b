"""Configs of runs: reading, checking, merging and storing them."""
