"""HTTP caching over real servers, case by case, the same in ASGI, WSGI and Django.

A client asks through the cache, the application answers what the case tells it, and then it counts
whether it was asked again, with what, and what came. All of it is the profile ``conforming``. The
rules themselves are tested with a clock of their own in ``tests/cache``; this shows that the
interfaces and the servers leave them whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.conformance import (
    on_fields,
    on_freshness,
    on_groups,
    on_immutable,
    on_invalidation,
    on_keys,
    on_no_vary_search,
    on_parts,
    on_requests,
    on_stale,
    on_storing,
    on_targets,
    on_validation,
)

if TYPE_CHECKING:
    from tests.conformance.conftest import Site
    from tests.conformance.telling import Case

PARTS = (
    on_fields,
    on_freshness,
    on_groups,
    on_immutable,
    on_invalidation,
    on_keys,
    on_no_vary_search,
    on_parts,
    on_requests,
    on_stale,
    on_storing,
    on_targets,
    on_validation,
)
CASES = [case for part in PARTS for case in part.CASES]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(site: Site, case: Case) -> None:
    site.play(case)


def test_no_two_cases_have_one_name() -> None:
    names = [str(case) for case in CASES]
    assert len(names) == len(set(names)), [name for name in names if names.count(name) > 1]
