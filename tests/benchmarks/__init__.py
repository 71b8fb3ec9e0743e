"""Benchmarks against other event stores, and such as one would write by hand: ``python -m tests.benchmarks``."""
