"""Markdown as GitHub reads it: what is right there is right on the site, by this extension.

- Links out of docs/, to tests and sources: ``../tests/x.py`` is right on GitHub as it stands. The
  site has no such page, so the repository's address, the ``repo_url`` of zensical.toml, takes the
  place of the root.
- A bar within code in a table's cell is written ``\\|``, and shown as a bar.
- ``<!-- changelog -->`` is invisible on GitHub, where the changelog is a file. On the site the
  changelog takes the comment's place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from markdown.extensions import Extension
from markdown.preprocessors import Preprocessor
from markdown.treeprocessors import Treeprocessor
from markdown.util import AtomicString
from zensical.extensions.context import ContextPreprocessor

from documentation.changelog import changelog
from documentation.site import on_site, repository

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

    from markdown import Markdown


class _Changelog(Preprocessor):
    def run(self, lines: list[str]) -> list[str]:
        """Put the changelog in the place of its comment."""
        text = "\n".join(lines)
        return text.replace("<!-- changelog -->", changelog()).splitlines()


class _AsOnGitHub(Treeprocessor):
    def run(self, root: Element) -> None:
        """Change what is read otherwise on the page that is being made."""
        # Each page has a converter of its own, which zensical's extension tells which it is.
        page = ContextPreprocessor.from_markdown(self.md).page.path
        for link in root.iter("a"):
            if target := link.get("href"):
                link.set("href", on_site(target, page, repository()))
        for cell in root.iter("td"):
            for code in cell.iter("code"):
                code.text = AtomicString((code.text or "").replace("\\|", "|"))


class AsOnGitHub(Extension):
    """The extension, as zensical.toml names it: ``documentation.as_on_github``."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802 - Markdown's name for it
        """Change pages before all else, and when inline Markdown, at 20, has made links."""
        md.preprocessors.register(_Changelog(md), "changelog", 100)
        md.treeprocessors.register(_AsOnGitHub(md), "as-on-github", 15)


def makeExtension(**settings: Any) -> AsOnGitHub:  # noqa: N802 - Markdown's name for it
    """Return the extension."""
    return AsOnGitHub(**settings)
