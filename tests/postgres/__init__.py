"""PostgreSQL: real servers, and what the conformance tests cannot say."""
