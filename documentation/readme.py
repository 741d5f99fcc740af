"""The README as PyPI shows it: ``python -m documentation.readme`` prints what is wrong with it.

PyPI does not know the repository's files, so each link and image needs a whole address. An address
in the repository has to lead to a file or heading that is here, and an image has to be a raster
image, which every index displays.
"""

from __future__ import annotations

import re
import sys
import tomllib
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from documentation.site import ROOT, repository

if TYPE_CHECKING:
    from collections.abc import Iterator

_RASTER: Final = {".png", ".jpg", ".jpeg", ".gif", ".webp"}
_HEADING = re.compile(r"^#{1,6} +(.*?) *$", re.MULTILINE)
_FENCED = re.compile(r"^( *)(`{3,}).*?^\1\2$", re.DOTALL | re.MULTILINE)


class _Addresses(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.images: list[str] = []
        self.anchors: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        said = dict(attrs)
        self.anchors.add(f"#{said.get('id')}")
        if tag == "a" and "href" in said:
            self.links.append(said["href"] or "")
        elif tag == "img":
            self.images.append(said.get("src") or "")


def faults(html: str) -> Iterator[str]:
    """Say what is wrong with a rendered page, and with the addresses in pyproject.toml."""
    addresses = _Addresses(html)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for link in [*addresses.links, *project["urls"].values()]:
        if link not in addresses.anchors and (wrong := _wrong(link)):
            yield f"{link}: {wrong}"
    for image in addresses.images:
        if (wrong := _wrong(image)) or (wrong := _wrong_image(image)):
            yield f"{image}: {wrong}"


def _wrong(address: str) -> str | None:
    if urlsplit(address).scheme != "https":
        return "should be a whole address, beginning with https://"
    home = repository().removesuffix("/blob/main")
    path, _, anchor = address.partition("#")
    if path == home:
        file = "README.md"
    elif path.startswith(f"{repository()}/"):
        file = path.removeprefix(f"{repository()}/")
    else:
        return None
    if not (ROOT / file).is_file():
        return f"{file} is no file of the repository"
    if anchor and anchor not in _anchors((ROOT / file).read_text()):
        return f"{file} has no heading #{anchor}"
    return None


def _wrong_image(address: str) -> str | None:
    raw = repository().replace("github.com", "raw.githubusercontent.com").replace("/blob/", "/")
    file = ROOT / address.removeprefix(f"{raw}/")
    if not address.startswith(f"{raw}/") or not file.is_file():
        return f"should be a file of the repository at {raw}/"
    return None if file.suffix in _RASTER else "should be a raster image"


def _anchors(page: str) -> set[str]:
    headings = _HEADING.findall(_FENCED.sub("", page))
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def main() -> int:
    """Print what is wrong with the README as PyPI shows it."""
    # It is in the environment that builds the site, and not in that of the tests.
    from readme_renderer.markdown import render  # noqa: PLC0415

    html = render((ROOT / "README.md").read_text())
    found = ["PyPI cannot render it"] if html is None else list(faults(html))
    sys.stderr.writelines(f"README.md: {each}\n" for each in found)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
