"""The documentation's pictures, drawn from what the package's own code says."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from documentation.pictures import freshness, limits, request

if TYPE_CHECKING:
    from collections.abc import Callable

PICTURES: Final[dict[str, Callable[[], str]]] = {
    **{name: partial(limits.drawn, name) for name in limits.LIMITS},
    "freshness": freshness.drawn,
    "request": request.drawn,
}
"""Each picture of docs/pictures by its name."""
