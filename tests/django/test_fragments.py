"""Fragments of templates, ``{% cached %}``: stored as values, and purged by their tags."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from asgiref.sync import sync_to_async
from django.http import HttpRequest, HttpResponse
from django.template import Context, Engine, RequestContext, TemplateSyntaxError
from django.template.response import TemplateResponse
from django.test import AsyncClient, Client, RequestFactory, override_settings
from django.utils import timezone, translation

from tests.django.project import Urls
from upstash_middleware.django import cached, data, purge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from upstash_middleware.local import LocalUpstash

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "OPTIONS": {
            "loaders": [
                (
                    "django.template.loaders.locmem.Loader",
                    {
                        "page": "{% load upstash_cache %}"
                        '{% cached 60 "price" tags="product:{id}" %}{{ query }}{% endcached %}',
                        "form": "<form>{% csrf_token %}</form>",
                    },
                )
            ],
            "context_processors": ["django.template.context_processors.csrf"],
        },
    }
]


class Database:
    """Counts how often it is queried; a variable of a template that is called."""

    def __init__(self) -> None:
        self.queries = 0

    def __call__(self) -> int:
        self.queries += 1
        return self.queries


@pytest.fixture(autouse=True)
def _project(upstash: LocalUpstash) -> Iterator[None]:
    mapping = {"cache": [{"path": "/{rest:path}"}], "deadline": 20.0, "cache_deadline": 20.0}
    with override_settings(TEMPLATES=TEMPLATES, UPSTASH_MIDDLEWARE=mapping, USE_TZ=True):
        yield


def render(source: str, context: Any = (), **values: Any) -> str:
    engine = Engine(
        libraries={
            "upstash_cache": "upstash_middleware.django.templatetags.upstash_cache",
            "tz": "django.templatetags.tz",
            "i18n": "django.templatetags.i18n",
        },
        builtins=["upstash_middleware.django.templatetags.upstash_cache"],
    )
    return engine.from_string(source).render(context or Context(values))


def test_a_fragment_is_rendered_once():
    source, database = '{% cached 60 "price" %}{{ query }}{% endcached %}', Database()
    assert [render(source, query=database) for _ in range(3)] == ["1"] * 3


def test_each_name_and_each_value_has_a_text_of_its_own():
    database = Database()
    selected = ['"a"', '"b"', '"a" value', '"a" value 1', '"a" "value"']
    sources = [f"{{% cached 60 {names} %}}{{{{ query }}}}{{% endcached %}}" for names in selected]
    values: list[Any] = [1, "1", None, True, Decimal("1.0"), "x:y", "x"]
    for _ in range(2):
        texts = [render(s, query=database, value=each) for s in sources for each in values]
        # The first, the second and the last do not contain the value.
        assert len(set(texts)) == 3 + 2 * len(values)


def test_values_that_join_to_the_same_text_are_different():
    source, database = '{% cached 60 "a" b c %}{{ query }}{% endcached %}', Database()
    assert render(source, query=database, b="x:y", c="z") == "1"
    assert render(source, query=database, b="x", c="y:z") == "2"


def test_a_lifetime_may_be_text_or_a_variable_and_ends(upstash: LocalUpstash):
    database = Database()
    for ttl, value in (('"5 minutes"', None), ("ttl", 300)):
        source = f'{{% cached {ttl} "{value}" %}}{{{{ query }}}}{{% endcached %}}'
        first = render(source, query=database, ttl=value)
        assert render(source, query=database, ttl=value) == first
        upstash.advance(301)
        assert render(source, query=database, ttl=value) != first


def test_what_is_escaped_stays_so_and_what_is_safe_is_not_escaped_again():
    source = '{% cached 60 "bold" %}<b>{{ name }}</b>{% endcached %}'
    expected = "<b>&lt;i&gt; &amp; co.</b>"
    assert [render(source, name="<i> & co.") for _ in range(2)] == [expected] * 2


def test_text_without_escaping_is_never_found_where_it_has_to_be_escaped():
    fragment = '{% cached 60 "name" %}{{ name }}{% endcached %}'
    bare = f"{{% autoescape off %}}{fragment}{{% endautoescape %}}"
    assert [render(bare, name="<i>") for _ in range(2)] == ["<i>"] * 2
    assert render(fragment, name="<i>") == "&lt;i&gt;"


def test_the_language_and_the_time_zone_select_a_fragment():
    source, database = '{% cached 60 "page" %}{{ query }}{% endcached %}', Database()
    texts: dict[tuple[str, str], str] = {}
    for _ in range(2):
        for language in ("en", "de"):
            for zone in ("UTC", "Europe/Berlin"):
                with translation.override(language), timezone.override(zone):
                    text = render(source, query=database)
                assert texts.setdefault((language, zone), text) == text
    assert len(set(texts.values())) == 4
    inside = f'{{% load i18n %}}{{% language "de" %}}{source}{{% endlanguage %}}'
    with translation.override("en"), timezone.override("UTC"):
        assert render(inside, query=database) == texts["de", "UTC"]


@pytest.mark.parametrize(
    ("tags", "values"),
    [
        ('"shop, product:7"', {}),
        ('"shop,product:{ product.pk }"', {"product": {"pk": 7}}),
        ('"product:{name|lower}"', {"name": "7"}),
        ("tag", {"tag": "product:7"}),
        ("tags", {"tags": ["shop", "product:7"]}),
    ],
)
def test_a_purge_of_a_tag_has_it_rendered_again(tags: str, values: dict[str, Any]):
    source = f'{{% cached 60 "price" tags={tags} %}}{{{{ query }}}}{{% endcached %}}'
    database = Database()
    for expected, purged in (("1", "product:8"), ("1", "product:7"), ("2", "product"), ("3", "x")):
        assert [render(source, query=database, **values) for _ in range(2)] == [expected] * 2
        purge(tags=[purged])


def test_a_fragment_rendered_during_a_purge_is_rendered_again():
    source = '{% cached 60 "price" tags="product:7" %}{{ query }}{% endcached %}'
    database = Database()

    def purged_meanwhile() -> int:
        price = database()
        purge(tags=["product:7"])
        return price

    assert render(source, query=purged_meanwhile) == "1"
    assert render(source, query=database) == "2"


def test_a_tag_in_a_variable_is_no_template():
    source = '{% cached 60 "price" tags=tag %}{{ query }}{% endcached %}'
    database = Database()
    for _ in range(2):
        assert render(source, query=database, tag="a:{secret}", secret="x") == "1"
    purge(tags=["a:{secret}"])
    assert render(source, query=database, tag="a:{secret}", secret="x") == "2"


def test_a_fragment_whose_tag_would_be_too_long_is_rendered_each_time():
    source = '{% cached 60 "price" tags="search:{q}" %}{{ query }}{% endcached %}'
    database = Database()
    assert [render(source, query=database, q=":" * 2000) for _ in range(2)] == ["1", "2"]


def test_clearing_the_values_of_the_application_leaves_the_fragments():
    source, database = '{% cached 60 "price" %}{{ query }}{% endcached %}', Database()
    render(source, query=database)
    data.clear()
    assert render(source, query=database) == "1"


def test_in_an_outage_and_without_upstash_a_fragment_is_rendered(upstash: LocalUpstash):
    source, database = '{% cached 60 "price" tags="a" %}{{ query }}{% endcached %}', Database()
    with upstash.faults(fault="bad-gateway"):
        assert [render(source, query=database) for _ in range(2)] == ["1", "2"]
    with override_settings(UPSTASH_MIDDLEWARE={"enabled": False}):
        assert [render(source, query=database) for _ in range(2)] == ["3", "4"]


def test_an_error_while_rendering_is_raised_and_nothing_is_stored():
    def fail() -> None:
        raise KeyError("price")

    source = '{% cached 60 "price" %}{{ query }}{% endcached %}'
    with pytest.raises(KeyError):
        render(source, query=fail)
    assert render(source, query=Database()) == "1"


def test_fragments_can_be_nested():
    inner = '{% cached 60 "inner" tags="inner" %}{{ query }}{% endcached %}'
    source = f'{{% cached 60 "outer" tags="outer" %}}[{inner}]{{% endcached %}}'
    database = Database()
    assert render(source, query=database) == "[1]"
    purge(tags=["inner"])
    assert render(source, query=database) == "[1]"
    purge(tags=["outer"])
    assert render(source, query=database) == "[2]"


def test_a_csrf_token_is_refused_also_in_what_is_included():
    request = RequestFactory().get("/")
    engine_source = '{% cached 60 "form" %}{% csrf_token %}{% endcached %}'
    with pytest.raises(TemplateSyntaxError, match="CSRF token"):
        render(engine_source, RequestContext(request, {"csrf_token": "secret"}))

    def including(request: HttpRequest) -> HttpResponse:
        from django.template import engines  # noqa: PLC0415 - of the test's settings

        source = '{% load upstash_cache %}{% cached 60 "f" %}{% include "form" %}{% endcached %}'
        return HttpResponse(engines["django"].from_string(source).render({}, request))

    with (
        override_settings(ROOT_URLCONF=Urls(page=including)),
        pytest.raises(TemplateSyntaxError, match="CSRF token"),
    ):
        Client().get("/page")
    assert render(engine_source.replace("csrf_token %}", "comment %}{% endcomment %}")) == ""


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ("", "cached: write"),
        ("60", "cached: write"),
        ('60 "a" tag="b"', "cached: write"),
        ('60 tags="b" "a"', "cached: write"),
        ("60 sidebar", "sidebar is not in the context; write text in quotation marks"),
        ('60 "a" user.idd', "user.idd is not in the context"),
        ('60 "a" tags="user:{user.idd}"', "user.idd is not in the context"),
        ('60 "a" tags=missing', "missing is not in the context"),
        ('60 "a" user', "such as user.pk instead of user"),
    ],
)
def test_a_mistake_is_reported_with_what_to_write(arguments: str, problem: str):
    class User:
        id = 7

    with pytest.raises(TemplateSyntaxError, match=problem):
        render(f"{{% cached {arguments} %}}{{% endcached %}}", user=User())


@pytest.mark.parametrize("ttl", ["0", "None", '"soon"'])
def test_a_lifetime_that_is_none_is_refused(ttl: str):
    with pytest.raises((ValueError, TypeError), match="ttl="):
        render(f'{{% cached {ttl} "a" %}}{{% endcached %}}')


def test_what_may_be_missing_has_a_default():
    source = '{% cached 60 "a" missing|default:"" %}{{ query }}{% endcached %}'
    assert [render(source, query=database) for database in [Database()] for _ in range(2)]


# ------------------------------------------------------------------------------------------------
# In views


QUERY = Database()


@cached(60, tags=["product:{id}"])
def page(request: HttpRequest, id: str) -> HttpResponse:  # noqa: A002 - as in the URL
    return TemplateResponse(request, "page", {"id": id, "query": QUERY})


@cached(60, tags=["product:{id}"])
async def async_page(request: HttpRequest, id: str) -> HttpResponse:  # noqa: A002 - likewise
    return TemplateResponse(request, "page", {"id": id, "query": QUERY})


@pytest.mark.anyio
@pytest.mark.parametrize("client", [Client, AsyncClient])
@pytest.mark.parametrize("view", [page, async_page])
async def test_one_purge_covers_page_value_and_fragment(
    client: Callable[[], Any], view: Callable[..., Any]
):
    @sync_to_async
    def get() -> Any:
        return Client().get("/p/7")

    async def visit() -> Any:
        return await (get() if client is Client else AsyncClient().get("/p/7"))

    def value() -> int:
        return data.get_or_set("price", 60, QUERY, tags=["product:7"])

    middleware = ["upstash_middleware.django.CacheMiddleware"]
    with override_settings(MIDDLEWARE=middleware, ROOT_URLCONF=Urls(**{"p/<id>": view})):
        first = await visit()
        assert "fwd=" in first["Cache-Status"]
        assert "; hit" in (await visit())["Cache-Status"]
        kept = await sync_to_async(value)()
        await sync_to_async(purge)("/p/7")
        rendered = await visit()
        assert "fwd=" in rendered["Cache-Status"]
        assert rendered.content == first.content, "the fragment is still stored"
        await sync_to_async(purge)(tags=["product"])
        again = await visit()
        assert "fwd=" in again["Cache-Status"]
        assert again.content != first.content
        assert await sync_to_async(value)() != kept


@pytest.mark.anyio
async def test_a_template_that_is_rendered_on_the_event_loop_is_stored_too():
    source, database = '{% cached 60 "price" %}{{ query }}{% endcached %}', Database()
    assert [render(source, query=database) for _ in range(2)] == ["1", "1"]
