"""Handlers of evaluations and inferences: tables, metrics, pictures and the report."""
