"""Handlers of evaluation and inference: tables, metrics, pictures and the report."""
