"""Finished runs side by side: rows over seeds, and their differences from the baseline with the same settings."""
