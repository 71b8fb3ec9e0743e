"""aiostore: an event store that lives in the event loop."""
