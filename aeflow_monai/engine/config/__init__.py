"""Configs of runs: what is given, checked, merged and stored."""
