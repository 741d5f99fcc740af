"""The check of the built site: every link leads somewhere, and nothing comes from elsewhere.

``python -m documentation.check site`` reads what was built and says what is wrong. Addresses of
other hosts are not asked, for a build needs no network; a link to the repository is checked
against the files that are here.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from documentation.addresses import ROOT, repository

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOADED: Final = {"script": "src", "img": "src", "iframe": "src", "source": "src"}
_LOADED_RELATIONS: Final = frozenset({"stylesheet", "preload", "icon", "preconnect"})
# It is served for addresses of any depth, so its own are the host's.
_NOT_FOUND: Final = "404.html"


@dataclass(slots=True)
class Page(HTMLParser):
    """What of a page can be wrong: its anchors, its links, and what a browser loads for it."""

    anchors: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Start as any parser."""
        HTMLParser.__init__(self)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take what a tag says."""
        said = dict(attrs)
        self.anchors.update(said[name] or "" for name in ("id", "name") if said.get(name))
        if tag == "a" and said.get("href") is not None:
            self.links.append(said["href"] or "")
        if tag in _LOADED and (source := said.get(_LOADED[tag])):
            self.loaded.append(source)
        if tag == "link" and _LOADED_RELATIONS & set((said.get("rel") or "").split()):
            self.loaded.append(said.get("href") or "")


def faults(site: Path) -> Iterator[str]:
    """Say what is wrong with the site, a line each."""
    pages = {path: _read(path) for path in sorted(site.rglob("*.html")) if path.name != _NOT_FOUND}
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


def _read(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text())
    return page


def _wrong(link: str, path: Path, pages: dict[Path, Page]) -> str | None:
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return _wrong_in_repository(link)
    to = _file(path, parts.path) if parts.path else path
    if not to.exists():
        return "leads nowhere"
    if parts.fragment and to in pages and unquote(parts.fragment) not in pages[to].anchors:
        return "names an anchor that is not there"
    return None


def _wrong_in_repository(link: str) -> str | None:
    path = link.removeprefix(f"{repository()}/").partition("#")[0]
    return "is no file of the repository" if path != link and not (ROOT / path).exists() else None


def _file(page: Path, target: str) -> Path:
    path = (page.parent / unquote(urlsplit(target).path)).resolve()
    return path / "index.html" if path.is_dir() else path


def main(site: str) -> int:
    """Print what is wrong; the exit status says whether anything is."""
    found = list(faults(Path(site).resolve()))
    for fault in found:
        print(fault, file=sys.stderr)  # noqa: T201 - a program for the terminal
    return bool(found)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
