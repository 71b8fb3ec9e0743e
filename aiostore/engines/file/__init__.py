"""The embedded log: a directory of JSON Lines, written by one process."""
