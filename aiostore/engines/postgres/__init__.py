"""The engine over PostgreSQL: shared by any number of processes."""
