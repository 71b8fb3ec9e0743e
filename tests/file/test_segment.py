"""Where the lines of a segment are, also for a thread that reads while others are added."""

from __future__ import annotations

from aiostore.engines.file.segment import Segment
from tests.file.lines import STORE_ID


class Growing(Segment):
    """A segment to which a line is added as soon as its end is read, by the one who writes."""

    grows = False

    @property
    def end(self) -> int:
        read = self.read_end
        if self.grows:
            self.grows = False
            self.add([30], 40)
        return read

    @end.setter
    def end(self, end: int) -> None:
        self.read_end = end


def made(kind: type[Segment] = Segment) -> Segment:
    segment = kind("/s", STORE_ID, 7)
    segment.extend([0, 10], 20)
    segment.extend([0], 10)
    return segment


def test_each_line_goes_from_its_beginning_to_the_next() -> None:
    segment = made()
    assert (segment.first_event_id, segment.last_event_id, segment.end) == (7, 9, 30)
    assert segment.starts(7, 9) == [0, 10, 20, 30]
    assert list(segment.starts(7, 8)) == [0, 10, 20]
    assert list(segment.starts(9, 9)) == [20, 30]
    assert segment.spans([9, 7]) == [(20, 30), (0, 10)]
    assert segment.span(8) == (10, 20)


def test_an_end_that_is_read_while_a_line_is_added_is_the_end_of_no_other() -> None:
    segment = made(Growing)
    assert isinstance(segment, Growing)
    segment.grows = True
    assert list(segment.starts(7, 9)) == [0, 10, 20, 30]
    assert segment.last_event_id == 10
    assert list(segment.starts(10, 10)) == [30, 40]


def test_an_end_that_is_read_after_a_line_was_added_is_not_that_of_the_one_before() -> None:
    segment = made(Growing)
    assert isinstance(segment, Growing)
    segment.grows = True
    assert segment.spans([9]) == [(20, 30)]
    assert segment.spans([9, 10]) == [(20, 30), (30, 40)]
