"""Measurements: each script prints the table that the docs quote."""
