"""How much is tried: what the environment says, or what there is time for."""

from __future__ import annotations

import os

CI = bool(os.environ.get("CI"))

_BUDGETS = {
    "kills": ("AIOSTORE_KILLS", 40, 250),
    "power-cuts": ("AIOSTORE_POWER_CUTS", 10, 40),
    "full-disks": ("AIOSTORE_FULL_DISKS", 2, 4),
    "soak": ("AIOSTORE_SOAK_SECONDS", 3, 20),
}
"""Each with its variable, the default, and what it is in continuous integration."""


def budget(campaign: str) -> int:
    """So many kills, cuts, disks or seconds."""
    variable, default, in_ci = _BUDGETS[campaign]
    return int(os.environ.get(variable) or (in_ci if CI else default))
