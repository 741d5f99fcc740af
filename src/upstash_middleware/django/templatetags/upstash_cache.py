"""``{% cached %}`` stores a fragment of a template, which its tags can purge.

With ``upstash_middleware.django`` in ``INSTALLED_APPS``::

    {% load upstash_cache %}
    {% cached 60 "sidebar" user.pk tags="product:{product.pk}, shop" %}
      …
    {% endcached %}
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from django.template import Library, Node, TemplateSyntaxError, Variable, VariableDoesNotExist
from django.template.base import FilterExpression
from django.utils.functional import SimpleLazyObject
from django.utils.safestring import SafeString

from upstash_middleware.core.data import with_all_ancestors
from upstash_middleware.core.values import encode
from upstash_middleware.data import SyncData
from upstash_middleware.django.conf import runtime_for_data
from upstash_middleware.django.requests import active_localization
from upstash_middleware.errors import NotStorable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from django.template import Context, NodeList
    from django.template.base import Parser, Token

register: Library = Library()

_fragments: SyncData = SyncData.over(runtime_for_data, kind="fragments")
_USAGE = (
    'cached: write {% cached SECONDS "name" … %}, perhaps with tags="product:7" at the end, '
    "where … are all values that the fragment depends on"
)


@register.tag
def cached(parser: Parser, token: Token) -> CachedNode:
    """Store the rendered content between ``{% cached %}`` and ``{% endcached %}``.

    Args:
        parser: Django's parser.
        token: ``cached TTL NAME [VALUE …] [tags=TAGS]``.

            - ``TTL``: seconds above 0, or text such as ``"5 minutes"``.
            - ``NAME``: text that no other fragment has.
            - ``VALUE``: a value on which the fragment depends, such as ``user.pk``: text, numbers,
              dates and so on. The active language and time zone are always included.
            - ``TAGS``: text with commas, in which ``{product.pk}`` is replaced; or a variable with
              a tag or a list of tags. Default: no tags.

    Raises:
        TemplateSyntaxError: An argument is missing or unknown. Rendering raises it if a variable
            does not exist, or if the fragment contains a CSRF token.
    """
    arguments = token.split_contents()[1:]
    tags: Tags = ()
    if arguments and arguments[-1].startswith("tags="):
        tags = _parsed_tags(parser, arguments.pop().removeprefix("tags="))
    if len(arguments) < 2 or any(re.match(r"\w+=", argument) for argument in arguments):
        raise TemplateSyntaxError(_USAGE)
    ttl, *names = map(parser.compile_filter, arguments)
    nodelist = parser.parse(("endcached",))
    parser.delete_first_token()
    return CachedNode(nodelist, ttl, names, tags)


class CachedNode(Node):
    """A fragment; see ``cached``."""

    def __init__(
        self,
        nodelist: NodeList,
        ttl: FilterExpression,
        names: Sequence[FilterExpression],
        tags: Tags,
    ) -> None:
        self.nodelist = nodelist  # Django finds the inner nodes in this attribute
        self._ttl = ttl
        self._names = names
        self._tags = tags

    def render(self, context: Context) -> SafeString:
        """Return the stored text; if there is none, or Upstash fails, render the fragment."""
        ttl, key = _resolve(self._ttl, context), self._key(context)

        def load() -> str:
            with context.push(csrf_token=SimpleLazyObject(_refuse_token)):
                return "".join((self.nodelist.render(context),))  # as plain text

        try:
            tags = with_all_ancestors(_resolved_tags(self._tags, context))
        except ValueError:  # a tag is too long, so it could not purge the fragment
            return SafeString(load())
        return SafeString(_fragments.get_or_set(key, ttl, load, tags=tags))

    def _key(self, context: Context) -> str:
        values = [_resolve(name, context) for name in self._names]
        # Safe text and other text with the same characters select the same fragment.
        plain = ["".join((value,)) if isinstance(value, str) else value for value in values]
        # {% autoescape off %}, {% localize off %} and similar tags change the rendered text.
        modes = (context.autoescape, context.use_l10n, context.use_tz)
        try:
            return encode((plain, active_localization(), modes)).decode()
        except NotStorable as error:
            raise TemplateSyntaxError(
                f"cached: {', '.join(map(str, self._names))}: {error}; name what identifies it, "
                "such as user.pk instead of user"
            ) from error


if TYPE_CHECKING:
    Tags = FilterExpression | Sequence[Sequence[str | FilterExpression]]
    """A variable; or tags from the template, each as alternating text and expressions."""


def _parsed_tags(parser: Parser, text: str) -> Tags:
    whole = parser.compile_filter(text)
    if isinstance(whole.var, Variable) or whole.filters:
        return whole
    return [
        [
            parser.compile_filter(part) if is_expression % 2 else part
            for is_expression, part in enumerate(re.split(r"\{\s*(.*?)\s*\}", tag.strip()))
        ]
        for tag in whole.var.split(",")
    ]


def _resolved_tags(tags: Tags, context: Context) -> Sequence[str]:
    if not isinstance(tags, FilterExpression):
        return [
            "".join(part if isinstance(part, str) else str(_resolve(part, context)) for part in tag)
            for tag in tags
        ]
    found = _resolve(tags, context)
    return [found] if isinstance(found, str) else found


def _resolve(expression: FilterExpression, context: Context) -> Any:
    """Return a value. Raises TemplateSyntaxError for a variable that does not exist.

    Django's own tag uses an empty text in this case, which would be the same for all users.
    """
    if isinstance(expression.var, Variable) and not expression.filters:
        try:
            return expression.var.resolve(context)
        except VariableDoesNotExist as error:
            raise TemplateSyntaxError(
                f"cached: {expression} is not in the context; write text in quotation marks, and "
                f'{expression}|default:"" for a value that may be missing'
            ) from error
    return expression.resolve(context)


def _refuse_token() -> str:
    raise TemplateSyntaxError(
        "cached: the fragment contains a CSRF token, which is one visitor's; write the form outside"
    )
