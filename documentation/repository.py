"""Links out of docs/, to tests and sources: on the site they lead to the repository.

On GitHub ``../tests/x.py`` is right as it stands. The site has no such page, so this Markdown
extension puts the repository's address, the ``repo_url`` of zensical.toml, in place of the root.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from markdown.extensions import Extension
from markdown.treeprocessors import Treeprocessor
from zensical.extensions.context import ContextPreprocessor

from documentation.addresses import on_site, repository

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

    from markdown import Markdown


class _Links(Treeprocessor):
    def run(self, root: Element) -> None:
        """Rewrite every link of the page that is being made."""
        # Each page has a converter of its own, which zensical's extension tells which it is.
        page = ContextPreprocessor.from_markdown(self.md).page.path
        for link in root.iter("a"):
            if target := link.get("href"):
                link.set("href", on_site(target, page, repository()))


class RepositoryLinks(Extension):
    """The extension, as zensical.toml names it: ``documentation.repository``."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802 - Markdown's name for it
        """Have links rewritten once inline Markdown, at 20, has made them."""
        md.treeprocessors.register(_Links(md), "repository-links", 15)


def makeExtension(**settings: Any) -> RepositoryLinks:  # noqa: N802 - Markdown's name for it
    """Return the extension."""
    return RepositoryLinks(**settings)
