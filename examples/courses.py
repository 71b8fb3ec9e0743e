"""Course subscriptions, decided over two tags at once: `python examples/courses.py [directory]`.

A course has room for so many students, and a student may take so many courses. No stream has both: what counts are all
events with the course's tag or the student's, wherever they stand. A decision is made on just these, and stored only if
no further one has come in between: the dynamic consistency boundary of https://dcb.events.

Forty students run for the same ten courses at the same time. Without a directory, all stays in memory.
"""

import asyncio
import random
import sys
from collections import Counter
from dataclasses import dataclass

from aiostore import AppendConditionFailed, Decider, Event, EventStore, NewEvent, Query, StreamAppend

COURSES = 10
CAPACITY = 8
STUDENTS = 40
COURSES_EACH_MAX = 3


class Refused(Exception):
    """The command is against the rules."""


@dataclass(frozen=True)
class Subscribe:
    """The command."""

    course: str
    student: str

    @property
    def boundary(self) -> Query:
        """What it is decided on: all of the course, and all of the student's subscriptions."""
        of_course = Query.where(types=["CourseDefined", "Subscribed"], tags=[f"course:{self.course}"])
        return of_course | Query.where(types=["Subscribed"], tags=[f"student:{self.student}"])


@dataclass
class Seen:
    """What a decision knows."""

    capacities: dict[str, int]
    subscribed: Counter[str]  # by tag


def evolve(seen: Seen, event: Event) -> None:
    if event.event_type == "CourseDefined":
        seen.capacities[event.tags[0]] = event.data["capacity"]
    else:
        seen.subscribed.update(event.tags)


def decide(command: Subscribe, seen: Seen) -> StreamAppend:
    course, student = f"course:{command.course}", f"student:{command.student}"
    if course not in seen.capacities:
        raise Refused("there is no such course")
    if seen.subscribed[course] >= seen.capacities[course]:
        raise Refused("the course is full")
    if seen.subscribed[student] >= COURSES_EACH_MAX:
        raise Refused(f"nobody takes more than {COURSES_EACH_MAX} courses")
    return StreamAppend(f"student-{command.student}", [NewEvent("Subscribed", {}, tags=[course, student])])


subscribing = Decider(lambda: Seen({}, Counter()), evolve, decide)


async def study(store: EventStore, student: str, outcomes: Counter[str]) -> None:
    """One student tries five courses, one after the other."""
    for course in random.sample(range(COURSES), 5):
        command = Subscribe(f"{course}", student)
        try:
            await subscribing.execute_over(store, command.boundary, command)
        except Refused as refusal:
            outcomes[f"refused: {refusal}"] += 1
        except AppendConditionFailed:
            outcomes["given up: others were faster each time"] += 1
        else:
            outcomes["subscribed"] += 1


async def main(directory: str | None) -> None:
    random.seed(7)
    outcomes: Counter[str] = Counter()
    async with EventStore(directory) as store:
        for course in range(COURSES):
            tag = f"course:{course}"
            await store.append(f"course-{course}", "CourseDefined", {"capacity": CAPACITY}, tags=[tag])
        async with asyncio.TaskGroup() as students:
            for number in range(STUDENTS):
                students.create_task(study(store, f"{number}", outcomes))

        for outcome, count in outcomes.most_common():
            print(f"{count:4} × {outcome}")
        taken = Counter(
            [tag async for event in store.read_all(query=Query.where(types="Subscribed")) for tag in event.tags]
        )
        for course in range(COURSES):
            count = taken[f"course:{course}"]
            print(f"course {course}: {count} of {CAPACITY} {'#' * count}")
        most = max(count for tag, count in taken.items() if tag.startswith("student:"))
        print(f"No student has more than {most} courses, of {COURSES_EACH_MAX} allowed.")
        assert most <= COURSES_EACH_MAX
        assert all(taken[f"course:{course}"] <= CAPACITY for course in range(COURSES))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else None))
