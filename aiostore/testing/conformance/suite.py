"""All tests of the conformance suite, for `from aiostore.testing.conformance.suite import *`."""

# Names of several modules, of which each test uses those of its own:
# mypy: disable-error-code="assignment"
# pyright: reportGeneralTypeIssues=false

from aiostore.testing.conformance.test_append import *  # noqa: F403
from aiostore.testing.conformance.test_conditions import *  # noqa: F403
from aiostore.testing.conformance.test_idempotency import *  # noqa: F403
from aiostore.testing.conformance.test_isolation import *  # noqa: F403
from aiostore.testing.conformance.test_lifecycle import *  # noqa: F403
from aiostore.testing.conformance.test_reads import *  # noqa: F403
from aiostore.testing.conformance.test_reads_by_time import *  # noqa: F403
from aiostore.testing.conformance.test_states import *  # noqa: F403
from aiostore.testing.conformance.test_strict_json import *  # noqa: F403
from aiostore.testing.conformance.test_subscriptions import *  # noqa: F403
