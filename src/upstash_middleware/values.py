"""Values that are made for every request: frozen to the type checker, quick where they run.

A frozen dataclass sets each of its fields by a call of ``object.__setattr__``, which takes five
times as long as setting an attribute, and a request takes some twenty of them. So those that the
package alone sees are guarded by mypy and not at run time. What users get is frozen in earnest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["value"]

if TYPE_CHECKING:
    from dataclasses import dataclass as value
else:
    from dataclasses import dataclass

    def value(**options: Any) -> Any:
        """Return dataclass's decorator, for ``@value(frozen=True, slots=True)``."""
        return dataclass(**options | {"frozen": False, "unsafe_hash": True})
