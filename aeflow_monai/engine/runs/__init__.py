"""What every run has: its folder, its record, its cases, and those that failed."""
