"""The built site: where links of the pages lead on it, and the check that nothing is broken.

``python -m documentation.site site`` prints what is wrong with a site that was built: links that
lead nowhere, anything that a browser would load from another host, and pages that its search does
not find. Addresses of other hosts are not requested, because a build needs no network; a link to
the repository is checked against the files that are here.
"""

from __future__ import annotations

import json
import posixpath
import sys
import tomllib
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROOT: Final = Path(__file__).parents[1]
_LOADED: Final = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
_LOADED_RELATIONS: Final = frozenset({"stylesheet", "preload", "icon", "preconnect"})
# It is served for addresses of any depth, so its own are the host's.
_NOT_FOUND: Final = "404.html"


@cache
def repository() -> str:
    """Return the address of the repository's files, by the ``repo_url`` of zensical.toml."""
    project = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]
    return f"{project['repo_url']}/blob/main"


def table(heading: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Return a table in Markdown; columns whose heading begins with ``>`` are aligned right."""
    bars = tuple("--:" if cell.startswith(">") else "---" for cell in heading)
    lines = [tuple(cell.removeprefix(">") for cell in heading), bars, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def on_site(target: str, page: str, address: str) -> str:
    """Return where a link of a page leads on the site; ``page`` is its path below docs/.

    What is outside of docs/ is at the repository's ``address``; other links stay as they are.
    """
    parts = urlsplit(target)
    if parts.scheme or parts.netloc or not parts.path or parts.path.startswith("/"):
        return target
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), parts.path))
    if path.startswith("docs/"):
        return target
    return f"{address}/{path}" + (f"#{parts.fragment}" if parts.fragment else "")


class _Page(HTMLParser):
    """A page's anchors, its links, and what a browser loads for it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        said = {name: value or "" for name, value in attrs}
        self.anchors |= {said.get("id", ""), said.get("name", "")} - {""}
        if tag == "a" and "href" in said:
            self.links.append(said["href"])
        elif tag != "link" or _LOADED_RELATIONS & set(said.get("rel", "").split()):
            self.loaded += filter(None, [said.get(_LOADED.get(tag, ""))])


def faults(site: Path) -> Iterator[str]:
    """Say what is wrong with the site, a line each."""
    files = [path for path in sorted(site.rglob("*.html")) if path.name != _NOT_FOUND]
    pages = {path: _Page(path.read_text()) for path in files}
    for path, page in pages.items():
        where = path.relative_to(site).as_posix()
        for source in page.loaded:
            if urlsplit(source).netloc:
                yield f"{where}: loads {source} from elsewhere"
            elif not _file(path, source).exists():
                yield f"{where}: loads {source}, which is not there"
        for link in page.links:
            if wrong := _wrong(link, path, pages):
                yield f"{where}: {link} {wrong}"


def unfound(site: Path) -> Iterator[str]:
    """Say which pages the site's search does not find by their title, a line each."""
    items = json.loads((site / "search.json").read_text())["items"]
    titles = {item["location"]: item["title"] for item in items}
    for path in sorted(site.rglob("index.html")):
        location = path.parent.relative_to(site).as_posix() + "/"
        if path.parent != site and not titles.get(location):
            yield f"{location}: is not in search.json"


def _wrong(link: str, path: Path, pages: dict[Path, _Page]) -> str | None:
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        file = link.removeprefix(f"{repository()}/").partition("#")[0]
        missing = link.startswith(f"{repository()}/") and not (ROOT / file).exists()
        return "is no file of the repository" if missing else None
    to = _file(path, parts.path) if parts.path else path
    if not to.exists():
        return "leads nowhere"
    if parts.fragment and to in pages and unquote(parts.fragment) not in pages[to].anchors:
        return "names an anchor that is not there"
    return None


def _file(page: Path, target: str) -> Path:
    path = (page.parent / unquote(urlsplit(target).path)).resolve()
    return path / "index.html" if path.is_dir() else path


if __name__ == "__main__":
    built = Path(sys.argv[1]).resolve()
    found = [*faults(built), *unfound(built)]
    sys.stderr.writelines(f"{fault}\n" for fault in found)
    sys.exit(bool(found))
