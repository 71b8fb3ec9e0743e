"""The store on real things: processes that are killed, disks that are full, file systems that lose their power.

`python -m tests.real kills --count 5000`, `… power-cuts --count 500` and `… full-disks --count 20` are campaigns, and
the tests here run the same commands with less. Without a count they take it from the environment: AIOSTORE_KILLS,
AIOSTORE_POWER_CUTS, AIOSTORE_FULL_DISKS; `python -m tests.real.soak --minutes 60` and AIOSTORE_SOAK_SECONDS likewise.

A campaign is a process that has neither threads nor an event loop, so that it may fork: a child is a writer within
milliseconds. Mounts are made in a name space of the campaign's own and end with it, however it ends.
"""
