"""Benchmarks against stores that one would write by hand over SQLite: ``python -m tests.benchmarks``."""
