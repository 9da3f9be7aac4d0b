"""Common parts of all runs: their folder, record, cases and failures."""
