"""The tests of aiostore."""
