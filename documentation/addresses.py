"""Where links of the pages lead on the site: plain text in, plain text out."""

from __future__ import annotations

import posixpath
import tomllib
from functools import cache
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

ROOT: Final = Path(__file__).parents[1]
_PAGES: Final = "docs"


@cache
def repository() -> str:
    """Return the address of the repository's files, by the ``repo_url`` of zensical.toml."""
    project = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]
    return f"{project['repo_url']}/blob/main"


def on_site(target: str, page: str, address: str) -> str:
    """Return where a link of a page leads on the site; ``page`` is its path below docs/.

    What is outside of docs/ is at the repository's ``address``; other links stay as they are.
    """
    parts = urlsplit(target)
    if parts.scheme or parts.netloc or not parts.path or parts.path.startswith("/"):
        return target
    here = posixpath.dirname(f"{_PAGES}/{page}")
    path = posixpath.normpath(posixpath.join(here, parts.path))
    if path.startswith(f"{_PAGES}/"):
        return target
    return f"{address}/{path}" + (f"#{parts.fragment}" if parts.fragment else "")
