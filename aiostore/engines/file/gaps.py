"""What is missing in a stream of a damaged log: it is seen by the versions of the events around it."""

from __future__ import annotations

from aiostore.engine import Selection
from aiostore.engines.file.index import Index
from aiostore.errors import StoreCorrupt
from aiostore.events import Event


class Gaps:
    """Goes along with a walk over the events of a stream, in the order of the selection."""

    def __init__(self, stream_id: str, selection: Selection, index: Index) -> None:
        self._stream_id = stream_id
        self._selection = selection
        self._index = index
        self._previous: Event | None = None
        self.below: Event | None = None
        """The stream's last event below those that are walked over; known when that end is come to."""
        self.above: Event | None = None
        """The first one above them."""

    def selected(self, version: int) -> bool:
        """Whether the selection asks for the version."""
        to_version = self._selection.to_version
        return self._selection.from_version <= version and (to_version is None or version <= to_version)

    def ended(self, event: Event) -> bool:
        """Whether nothing is asked for behind the event."""
        selection = self._selection
        if selection.backwards:
            return event.version <= selection.from_version
        return selection.to_version is not None and event.version >= selection.to_version

    def before(self, event: Event) -> StoreCorrupt | None:
        """Go on to the next event; the error where one that is asked for is missing on the way."""
        if self._selection.backwards:
            error = self._between(event, self._previous or self.above)
        else:
            error = self._between(self._previous or self.below, event)
        self._previous = event
        return error

    def at_end(self) -> StoreCorrupt | None:
        """The same for what comes behind the last event."""
        if self._selection.backwards:
            return self._between(self.below, self._previous or self.above)
        return self._between(self._previous or self.below, self.above)

    def _between(self, lower: Event | None, upper: Event | None) -> StoreCorrupt | None:
        version = lower.version if lower else 0
        if upper is None:
            return self._behind(lower, version)
        missing = range(version + 1, upper.version)
        if upper.version > version and not (
            missing and self._selection.from_version <= missing[-1] and self._starts_below(missing[0])
        ):
            return None
        return self._wrong_version(version + 1, upper)

    def _starts_below(self, version: int) -> bool:
        return self._selection.to_version is None or version <= self._selection.to_version

    def _behind(self, last: Event | None, version: int) -> StoreCorrupt | None:
        """Damage that may hold more of the stream than is known of it."""
        selection = self._selection
        if not self._starts_below(version + 1):
            return None
        behind = max(last.event_id if last else 0, selection.after)
        damages = self._index.damages
        damage = next((each for each in damages if each.last > behind and each.first <= selection.up_to), None)
        return damage.error() if damage else None

    def _wrong_version(self, version: int, event: Event) -> StoreCorrupt:
        for damage in self._index.damages:
            if damage.first < event.event_id:
                return damage.error()
        segment = self._index.segment_of(event.event_id)
        offset, _ = segment.span(event.event_id)
        reason = f"version {event.version} of stream {self._stream_id!r} stands where version {version} must"
        return StoreCorrupt(segment.path, offset, reason, event.event_id, event.event_id)
