"""No-Vary-Search (draft-ietf-httpbis-no-vary-search-10): queries that select the same response."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cache.world import Answer, Site, reply, request
from upstash_middleware.core.cache import CacheRule, Purge
from upstash_middleware.core.cache.cache import PreparedLookup
from upstash_middleware.core.cache.exchanges import Answered
from upstash_middleware.core.cache.http.no_vary_search import EXACT, parse_field, variation_of
from upstash_middleware.drivers import run
from upstash_middleware.messages import Headers, HTTPRequest

UTM = 'params=("utm_source" "utm_medium")'
PATH = "test:cache:query:/page"


def searching(field: str | None = UTM, **options: Any) -> Site:
    """Return a site whose pages have this field, and show their query."""
    site = Site(options=options)
    answers(site, field)
    return site


def answers(site: Site, field: str | None, **fields: Any) -> None:
    given: dict[str, Any] = {} if field is None else {"no_vary_search": field}
    given |= {"cache_control": "max-age=60"} | fields
    site.app = lambda asked: reply(f"{asked.path}?{asked.query}".encode(), **given)


def ask(site: Site, query: str, path: str = "/page", **fields: str) -> Answer:
    return site.visit(request(path, query=query, **fields))


def are_one(field: str | None, one: str, other: str) -> bool:
    """Whether a request with the second query is answered by the response to the first.

    And whether this is so in a process that knows the field, and in one that has seen it elsewhere.
    """
    site = searching(field)
    ask(site, "first=1", "/other")  # so that its rule is known to have the field
    ask(site, one)
    answer = ask(site, other)
    new = site.another_process()
    ask(new, "first=1", "/other")
    assert ask(new, other).hit, "it is stored now in any case"
    return answer.hit


# --- The field (§3, §5) -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "meaning"),
    [
        ("key-order", "key-order"),
        ('params=("a")', 'params=("a")'),
        ('except=("x")', 'except=("x")'),
        ("params=()", ""),
        ("except=()", "except=()"),
        ("key-order=?1", "key-order"),
        ("key-order=?0", ""),
        ('except=("x"), key-order', 'key-order, except=("x")'),
        ('key-order, params=("b" "a" "b")', 'key-order, params=("a" "b")'),
        ("unknown-key", ""),
        ('unknown=1, params=("a")', 'params=("a")'),
        ("key-order;x=1", "key-order"),
        ('params=("a";x=1 "b");y', 'params=("a" "b")'),
        ("key-order=?0, key-order", "key-order"),
        ('params=("%C3%A9+%E6%B0%97")', 'params=("%C3%A9%20%E6%B0%97")'),
        ('params=("")', 'params=("")'),
        ("", ""),
    ],
)
def test_a_valid_field_has_its_meaning(value, meaning):
    """§5.1, with the draft's examples; parameters and unknown keys are ignored."""
    assert str(parse_field(value)) == meaning
    assert parse_field(value) == parse_field(meaning)


@pytest.mark.parametrize(
    "value",
    [
        'key-order="not a boolean"',
        "key-order=1",
        "key-order=()",
        'params="not an inner list"',
        "params=(not-a-string)",
        'params=("a" b)',
        "params=?0",
        "params=?1",
        "params",
        'params, except=("x")',
        'params=?1, except=("x")',
        'params=("a"), except=("x")',
        "params=(), except=()",
        'except="not an inner list"',
        "except=(not-a-string)",
        "except=?1",
        "except",
        'key-order, params=("a"',
        'params=("a"),',
        "KEY-ORDER",
        'params=("é")',
        "params=({})".format(" ".join(f'"{number}"' for number in range(129))),
        'params=("{}")'.format("a" * 8192),
    ],
)
def test_an_invalid_field_means_no_reuse_and_is_explained(value):
    """§5.1: as if there was none, what browsers' documentation shows included; and the bounds."""
    headers = Headers([(b"no-vary-search", value.encode("latin-1"))])
    assert isinstance(parse_field(value), str)
    assert variation_of(headers) == EXACT
    site = searching(value)
    ask(site, "utm_source=1")
    for query in ("", "utm_source=2", "utm_source=%31"):
        assert not ask(site, query).hit
    assert ask(site, "utm_source=1").hit
    assert PATH not in site.store.values
    for query in ("utm_source=1", "utm_source=3"):
        asked = request("/page", query=query)
        explained = run(site.cache.explain(asked), site.store)
        assert explained.no_vary_search.startswith("not valid, so only the exact URL is answered: ")


def test_as_many_names_as_are_supported_count():
    """The bound is on the names of one field."""
    names = " ".join(f'"{number}"' for number in range(128))
    assert are_one(f"params=({names})", "127=1", "0=1")


def test_several_lines_are_one_dictionary():
    """RFC 9651 §4.2."""
    lines = [(b"no-vary-search", b"key-order"), (b"no-vary-search", b'params=("a")')]
    assert str(variation_of(Headers(lines))) == 'key-order, params=("a")'


# --- Comparing (§6) -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "one", "other", "equal"),
    [
        (None, "a=1", "a=1", True),
        (None, "a=1", "a=%31", False),
        (None, "", "a=1", False),
        (UTM, "utm_source=1", "utm_source=2", True),
        (UTM, "utm_source=1", "", True),
        (UTM, "", "utm_source=1", True),
        (UTM, "a=1&utm_medium=x", "utm_source=2&a=1", True),
        (UTM, "a=1", "a=2", False),
        (UTM, "a=1", "a=1&b=1", False),
        (UTM, "a=1&b=2", "b=2&a=1", False),
        (UTM, "utm%5Fsource=1", "a=", False),
        (UTM, "utm%5Fsource=1", "", True),
        (UTM, "UTM_source=1", "", False),
        ("key-order", "a=1&b=2", "b=2&a=1", True),
        ("key-order", "a=1&b=2&a=3", "b=2&a=1&a=3", True),
        ("key-order", "a=1&a=3", "a=3&a=1", False),
        ("key-order", "a=1", "a=1&b=1", False),
        ('except=("id")', "id=7&x=1", "y=2&id=7", True),
        ('except=("id")', "id=7", "id=8", False),
        ('except=("id")', "x=1", "", True),
        ('except=("id" "to")', "id=7&to=1", "to=1&id=7", False),
        ('key-order, except=("id" "to")', "id=7&to=1&x", "to=1&id=7", True),
        ("except=()", "a=1", "b=2", True),
        ("key-order", "a=x", "%61=%78", True),
        ("key-order", "a=%f6", "a=%ef%bf%bd", True),
        ("key-order", "a=x&&&&", "a=x", True),
        ("key-order", "a=", "a", True),
        ("key-order", "a=%20", "a=+", True),
        ("key-order", "a=%C3%A9", "a=e%CC%81", False),
        ("params=()", "a=x", "%61=%78", False),
        ("params=()", "a=x&&", "a=x", False),
        ('params=("%C3%A9+%E6%B0%97")', "%C3%A9%20%e6%b0%97=3", "", True),
        ('params=("+")', "%2B=1", "", False),
        ('params=("%2B")', "%2B=1", "", True),
    ],
)
def test_queries_are_compared_as_the_stored_responses_field_says(field, one, other, equal):
    """§6, with the draft's examples."""
    assert are_one(field, one, other) is equal


@pytest.mark.parametrize(
    ("other", "equal"),
    [
        (request("/page", query="utm_source=2"), True),
        (request("/Page", query="utm_source=2"), False),
        (request("/page", query="utm_source=2", host="shop.test:8000"), False),
        (
            HTTPRequest("GET", "/page", query="utm_source=2", host="shop.test", scheme="https"),
            False,
        ),
    ],
)
def test_scheme_host_port_and_path_have_to_be_the_same(other, equal):
    """§6."""
    site = searching()
    ask(site, "")
    assert site.visit(other).hit is equal


def pairs_of(query: str) -> list[tuple[str, str]]:
    """Parse a query as URL §5.1 says, word for word."""
    output = []
    for sequence in query.encode("ascii").split(b"&"):
        if not sequence:
            continue
        name, value = sequence.split(b"=", 1) if b"=" in sequence else (sequence, b"")
        decoded = [
            unquote_to_bytes(each.replace(b"+", b" ")).decode("utf-8", "replace")
            for each in (name, value)
        ]
        output.append((decoded[0], decoded[1]))
    return output


def equivalent(one: str, other: str, names: list[str], kind: str, *, order: bool) -> bool:
    """Compare two queries as §6 says, word for word."""
    a, b = pairs_of(one), pairs_of(other)
    if kind == "params":
        a = [pair for pair in a if pair[0] not in names]
        b = [pair for pair in b if pair[0] not in names]
    else:
        a = [pair for pair in a if pair[0] in names]
        b = [pair for pair in b if pair[0] in names]
    if not order:
        a.sort(key=lambda pair: pair[0].encode("utf-16-be"))
        b.sort(key=lambda pair: pair[0].encode("utf-16-be"))
    return a == b


QUERIES = st.text("ab=&+%2061C3A9ef", max_size=14)


@given(
    st.lists(QUERIES, min_size=2, max_size=2),
    st.lists(st.sampled_from(["a", "b", "", "a b", "\u00e9"]), max_size=3),
    st.sampled_from(["params", "except"]),
    st.booleans(),
)
def test_canonical_forms_are_equal_where_the_draft_says_that_urls_are_equivalent(
    queries, names, kind, order
):
    """And a canonical form is its own."""
    one, other = queries
    written = " ".join(f'"{name}"'.replace("\u00e9", "%C3%A9").replace(" ", "+") for name in names)
    variation = parse_field(f"key-order={'?0' if order else '?1'}, {kind}=({written})")
    assert not isinstance(variation, str)
    first, second = variation.canonical(one), variation.canonical(other)
    if variation == EXACT:
        assert (first, second) == (one, other)
        return
    assert (first == second) is equivalent(one, other, names, kind, order=order)
    assert variation.canonical(first) == first
    assert equivalent(first, one, names, kind, order=order)


def test_a_query_that_is_too_long_is_compared_as_it_is():
    """The work for each request is bounded."""
    site = searching()
    long = "a=" + "x" * 8192
    ask(site, long)
    assert ask(site, long).hit
    assert not ask(site, f"{long}&utm_source=1").hit


# --- Caching (§7) -------------------------------------------------------------------------------


def test_the_field_reaches_the_client_unchanged():
    """§3: intermediaries do not modify it."""
    site = searching('except=("x"), key-order;a=1')
    ask(site, "x=1&y=2")
    answer = ask(site, "y=3&x=1")
    assert answer.hit
    assert answer.headers.get("no-vary-search") == 'except=("x"), key-order;a=1'


def test_vary_selects_besides():
    """§7: beside content negotiation."""
    site = searching()
    answers(site, UTM, vary="Foo")
    ask(site, "", foo="1")
    assert ask(site, "utm_source=1", foo="1").hit
    assert not ask(site, "utm_source=1", foo="2").hit
    answer = ask(site, "utm_source=2", foo="2")
    assert (answer.hit, answer.billed) == (True, ["MGET"])


def test_what_a_rule_ignores_is_ignored_too():
    """The rule's own settings come on top."""
    site = Site((CacheRule("/page", ignore_query=("x",), sort_query=True),))
    answers(site, UTM)
    ask(site, "utm_source=1&x=1&b=2&a=1")
    assert ask(site, "a=1&b=2&x=2").hit
    assert ask(site, "b=2&utm_medium=3&a=1").hit


def test_a_rule_that_selects_by_user_keeps_users_apart():
    """Whatever the field says."""
    site = Site((CacheRule("/page", ttl=60, user=lambda asked: asked.headers.get("user")),))
    answers(site, UTM)
    ask(site, "utm_source=1", user="ann")
    assert ask(site, "utm_source=2", user="ann").hit
    assert not ask(site, "utm_source=1", user="bob").hit
    assert ask(site, "", user="bob").hit


def test_a_response_without_the_field_answers_its_own_url_alone():
    """Beside others with it, and where the process expects it."""
    site = searching()
    ask(site, "")
    assert ask(site, "utm_source=1").hit
    site.purge("/page")
    answers(site, None)
    ask(site, "utm_source=1")
    assert ask(site, "utm_source=1").hit
    assert not ask(site, "utm_source=2").hit
    assert not ask(site, "").hit


@pytest.mark.parametrize("field", [None, 'params=("a")'], ids=["none", "another"])
@pytest.mark.parametrize("is_remembered", [False, True], ids=["read", "remembered"])
def test_what_is_stored_at_the_canonical_url_has_to_say_so_itself(field, is_remembered):
    """Another process has stored it; this one only guesses by what its rule had elsewhere."""
    other = searching(None)
    ask(other, "b=1")
    site = other.another_process()
    answers(site, UTM)
    ask(site, "", "/other")
    if field is not None:
        other.purge("/page?b=1")
        answers(other, field)
        ask(other, "b=1")
        site.store.values.pop(PATH)
    if is_remembered:
        assert ask(site, "b=1").hit
        assert ask(site, "b=1").hit
    answer = ask(site, "b=1&utm_source=1")
    assert (answer.hit, answer.body) == (False, b"/page?b=1&utm_source=1")


def test_what_the_previous_version_stored_has_to_say_so_itself():
    """It had no such field."""
    old = searching(None, version="1")
    ask(old, "b=1")
    new = old.another_process(version="2", previous_version="1", background_refresh=True)
    answers(new, UTM)
    ask(new, "", "/other")
    assert not ask(new, "b=1&utm_source=1").hit


def test_a_lock_is_given_back_where_the_response_is_stored_for_another_url():
    """Nobody would find it at the key that others wait for."""
    site = Site((CacheRule("/{page}", ttl=60),), options={"lock": True})
    answers(site, UTM)
    ask(site, "", "/other")
    other = site.another_process()
    ask(other, "x=1", "/other")
    answers(site, None)
    answers(other, None)
    ask(site, "b=1&utm_source=1")
    answer = ask(other, "b=1&utm_source=2")
    assert (answer.hit, answer.billed[0]) == (False, "MGET")
    assert answer.billed.count("MGET") == 1, "it has not waited"


def test_a_response_with_another_field_answers_by_that():
    """The field of the stored response decides, and the newest of a path is looked for."""
    site = searching()
    ask(site, "a=1&utm_source=1")
    assert ask(site, "a=1").hit
    site.purge(everything=True)
    answers(site, 'params=("a")')
    ask(site, "a=1&utm_source=1")
    assert ask(site, "a=1&utm_source=1").hit
    assert not ask(site, "a=1").hit
    assert ask(site, "a=2").hit
    assert ask(site, "a=2&utm_source=1").hit
    assert not ask(site, "a=2&utm_source=2").hit


def test_a_redirect_without_the_field_does_not_end_it():
    """Nor does an error; an ordinary response does."""
    site = searching()
    ask(site, "")
    answers(site, None)
    site.app = lambda _: reply(b"", 404, cache_control="max-age=60")
    ask(site, "a=1")
    answer = ask(site, "utm_source=1")
    assert (answer.hit, answer.billed) == (True, ["MGET"])


def test_an_exact_match_that_is_fresh_comes_first():
    """§7: it is the first step that the draft suggests."""
    site = searching(None)
    ask(site, "utm_source=1")
    other = site.another_process()
    answers(other, UTM)
    ask(other, "")
    ask(other, "a=1")
    answer = ask(other, "utm_source=1")
    assert (answer.hit, answer.body, answer.billed) == (True, b"/page?utm_source=1", ["MGET"])
    other.clock.advance(59)
    ask(other, "")
    other.clock.advance(2)
    ask(other, "")
    answer = ask(other, "utm_source=1")
    assert (answer.hit, answer.body) == (True, b"/page?")


def test_a_stale_response_is_validated_for_all_equivalent_urls():
    """Once, with the validators of the stored response."""
    site = searching()
    answers(site, UTM, etag='"1"')
    ask(site, "utm_source=1")
    site.clock.advance(61)
    site.app = lambda _: reply(b"", 304, cache_control="max-age=60", etag='"1"', no_vary_search=UTM)
    answer = ask(site, "utm_source=2")
    assert (answer.status, answer.body) == (200, b"/page?utm_source=1")
    assert ask(site, "utm_source=3").hit


def test_a_background_revalidation_asks_for_the_canonical_url():
    """And not for what one visitor's link says."""
    site = searching(background_refresh=True)
    answers(site, UTM, stale_while_revalidate="")
    site.app = lambda _: reply(
        cache_control="max-age=60, stale-while-revalidate=60", no_vary_search=UTM
    )
    ask(site, "b=2&utm_source=1")
    site.clock.advance(61)
    exchange = site.begin(request("/page", query="utm_source=2&b=2"))
    assert isinstance(exchange, Answered)
    assert exchange.refresh is not None
    assert exchange.refresh.request.query == "b=2"


def test_a_head_request_is_answered_too():
    """As by any stored response."""
    site = searching()
    ask(site, "utm_source=1")
    assert site.visit(request("/page", "HEAD", query="utm_source=2")).hit


def test_the_previous_versions_response_is_used_by_its_own_field():
    """After a deploy."""
    old = searching(version="1")
    ask(old, "utm_source=1")
    new = old.another_process(version="2", previous_version="1", background_refresh=True)
    new.app = lambda _: reply(b"new", cache_control="max-age=60", no_vary_search=UTM)
    ask(new, "", "/other")
    exchange = new.begin(request("/page", query="utm_source=2"))
    assert exchange.response is not None
    assert exchange.response.body == b"/page?utm_source=1"


@pytest.mark.parametrize("field", [UTM, None], ids=["field", "none"])
def test_requests_that_wait_share_a_response_that_is_for_both(field):
    """Only if its own field says so, whatever the process expects."""
    site = searching()
    ask(site, "", "/page")
    site.purge("/page")
    leader = site.begin(request("/page", query="utm_source=1"))
    flow = site.cache.begin(request("/page", query="utm_source=2"))
    value: Any = None
    for _ in range(20):
        effect = flow.send(value)
        if type(effect).__name__ == "Wait":
            break
        value = site.store.execute(effect)
    fields = {} if field is None else {"no_vary_search": field}
    head, body = reply(b"one", cache_control="max-age=60", content_length="3", **fields)
    leader.head(head)
    leader.chunk(body)
    try:
        effect = flow.send(True)
    except StopIteration as end:
        response = end.value.response
    else:
        response = None
        flow.close()
    assert (response is not None and response.body == b"one") is (field is not None)


# --- What it costs (one MGET for each lookup) ---------------------------------------------------


def test_without_the_field_nothing_more_is_read_or_written():
    """No key, no command, no round trip."""
    site = searching(None)
    assert ask(site, "a=1").billed == ["MGET", "SET"]
    prepared = site.cache.prepare(request("/page", query="a=2"))
    assert isinstance(prepared, PreparedLookup)
    (command,) = prepared.pipeline.commands
    assert len(command.args) == 1 + 5, "the entry, and the epochs of everything, URL, rule and tags"
    assert not [key for key in site.store.values if ":query:" in key]
    before = len(site.store.billed)
    site.purge("/page?a=1")
    site.visit(request("/page", "POST", query="a=1"))
    assert site.store.billed[before:] == ["SET", "SET"]


def test_the_first_response_of_a_path_also_writes_its_record():
    """The next ones do not, as long as it outlives them."""
    site = searching()
    assert ask(site, "utm_source=1").billed == ["MGET", "SET", "SET"]
    site.purge(everything=True)
    assert ask(site, "utm_source=1").billed == ["MGET", "SET"]
    site.clock.advance(14 * 24 * 3600 - 30)
    assert ask(site, "utm_source=2").billed == ["MGET", "SET", "SET"]


def test_a_hit_by_another_url_is_one_command():
    """The exact key, the canonical key and the record are read together; also nothing is parsed."""
    site = searching()
    ask(site, "b=2")
    for query in ("utm_source=1&b=2", "b=2&utm_source=2", "b=2"):
        answer = ask(site, query)
        assert (answer.hit, answer.billed, answer.round_trips) == (True, ["MGET"], 1)


def test_a_new_process_learns_from_the_first_response_and_then_from_records():
    """One render for each rule, one read more for each path, and one command from then on."""
    first = searching()
    for path in ("/page", "/other"):
        ask(first, "a=1", path)
    new = first.another_process()
    assert not ask(new, "a=1&utm_source=1").hit
    for path in ("/page", "/other"):
        for _ in range(2):
            answer = ask(new, "a=1&utm_source=1", path)
            assert (answer.hit, answer.billed) == (True, ["MGET"])


def test_a_new_process_learns_from_a_hit_of_the_exact_url():
    """The field is in what is stored."""
    first = searching()
    ask(first, "a=1")
    new = first.another_process()
    assert ask(new, "a=1").billed == ["MGET"]
    answer = ask(new, "utm_source=1&a=1")
    assert (answer.hit, answer.billed) == (True, ["MGET"])


def test_a_path_whose_field_differs_from_its_rules_costs_one_more_read_once():
    """Its record says so."""
    first = searching()
    ask(first, "", "/other")
    answers(first, 'except=("id")')
    ask(first, "id=7")
    new = first.another_process()
    answers(new, UTM)
    ask(new, "", "/other")
    answer = ask(new, "x=1&id=7")
    assert (answer.hit, answer.billed) == (True, ["MGET", "MGET"])
    answer = ask(new, "id=7&x=2")
    assert (answer.hit, answer.billed) == (True, ["MGET"])


def test_a_path_that_never_had_the_field_costs_one_key_more_where_its_rule_had_it():
    """A hit of an exact URL says so; that key shows when the field comes."""
    stored = searching(None)
    asked = request("/page", query="a=1&utm_source=1")
    stored.visit(asked)
    site = stored.another_process()
    answers(site, UTM)
    ask(site, "", "/other")
    assert site.visit(asked).billed == ["MGET"]
    prepared = site.cache.prepare(asked)
    assert isinstance(prepared, PreparedLookup)
    (command,) = prepared.pipeline.commands
    assert command.args[-1] == PATH
    assert len(command.args) == 1 + 5 + 1
    answers(stored, UTM)
    ask(stored, "b=1")
    assert ask(site, "b=1&utm_source=1").billed == ["MGET", "MGET"]
    assert ask(site, "b=1&utm_source=2").billed == ["MGET"]


@pytest.mark.parametrize("value", [b"", b"x", b"9 \xff", b"99999999999 params", b"1 key-order=1"])
def test_a_record_that_cannot_be_read_means_the_exact_url(value):
    """And is written over."""
    site = searching()
    ask(site, "", "/other")
    site.store.set(PATH, value, "PX", 60_000)
    ask(site, "utm_source=1")
    assert ask(site, "utm_source=1").hit
    ask(site, "utm_source=2")
    assert ask(site, "utm_source=3").hit


def test_memory_answers_canonical_urls_alone():
    """Whether another spelling was purged elsewhere is not known there."""
    site = searching(l1_bytes=1_000_000, l1_seconds=60.0)
    ask(site, "")
    assert ask(site, "").billed == ["MGET"]
    assert ask(site, "").billed == []
    assert ask(site, "utm_source=1").billed == ["MGET"]


def test_a_response_is_stored_where_all_equivalent_requests_look():
    """Also the first one, by a process that knew nothing of the field."""
    site = searching()
    ask(site, "utm_source=1&a=1")
    assert "test:cache:entry:http://shop.test/page?a=1" in site.store.values
    assert ask(site.another_process(), "a=1").hit


def test_a_purge_of_the_canonical_form_reaches_the_first_response_too():
    """Its epoch was not read before; that it is there now says that it was purged."""
    site = searching()
    rendering = site.begin(request("/page", query="utm_source=1&a=1"))
    site.another_process().purge("/page?a=1")
    head, body = reply(b"old", cache_control="max-age=60", no_vary_search=UTM)
    rendering.head(head)
    rendering.chunk(body)
    site.finish(rendering)
    assert not ask(site, "a=1").hit


# --- Invalidation -------------------------------------------------------------------------------


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("process", ["same", "new", "worker"])
@pytest.mark.parametrize("purged", ["/page?a=1&utm_source=9", "/page?a=1", "/page?utm_medium=&a=1"])
def test_a_purge_covers_the_url_and_its_canonical_form(purged, process, soft):
    """From a process that knows the field, one that has seen nothing, and one without rules."""
    site = searching()
    ask(site, "a=1&utm_source=9")
    assert ask(site, "a=1").hit
    by = site
    if process != "same":
        by = Site(site.rules if process == "new" else (), site.clock, site.store, site.randomness)
    by.purge(purged, soft=soft)
    for query in ("a=1", "utm_source=9&a=1", "a=1&utm_medium=2"):
        site.app = lambda _: reply(b"", 404)
        assert not ask(site, query).hit


def test_what_a_purge_costs():
    """A process that has looked nothing up reads the record of a URL with a query besides."""
    site = searching()
    ask(site, "")
    for by, url, billed in (
        (site, "/page", ["SET"]),
        (site, "/page?utm_source=1", ["SET", "SET"]),
        (site.another_process(), "/page", ["SET"]),
        (site.another_process(), "/page?utm_source=1", ["SET", "MGET", "SET"]),
        (site.another_process(), "/none?utm_source=1", ["SET", "MGET"]),
    ):
        before = len(site.store.billed)
        by.purge(url)
        assert site.store.billed[before:] == billed


def test_a_url_that_was_purged_is_not_answered_by_its_canonical_form():
    """Even if whoever purged it knew nothing of the field."""
    site = searching()
    ask(site, "a=1")
    assert ask(site, "a=1&utm_source=1").hit
    knows_nothing = site.another_process()
    knows_nothing.app = lambda _: reply(cache_control="no-store")
    ask(knows_nothing, "", "/elsewhere")
    knows_nothing.purge("/page?a=1&utm_source=1")
    assert not ask(site, "a=1&utm_source=1").hit
    answer = ask(site, "a=1&utm_source=1")
    assert (answer.hit, answer.billed) == (True, ["MGET"])
    assert ask(site, "a=1").hit


def test_an_unsafe_request_invalidates_the_canonical_form():
    """RFC 9111 §4.4, §7; and the next request of this process sees it at once."""
    site = searching()
    ask(site, "a=1")
    asked = request("/page", "POST", query="utm_source=1&a=1")
    change = site.begin(asked)
    change.head(reply(b"")[0])
    assert site.begin(request("/page", query="a=1")).response is None
    before = len(site.store.billed)
    site.finish(change)
    assert site.store.billed[before:] == ["SET", "SET"]
    assert not ask(site, "a=1").hit


def test_the_next_request_of_a_spelling_sees_its_own_change():
    """Before Upstash knows of it."""
    site = searching()
    ask(site, "a=1")
    asked = request("/page", "POST", query="a=1")
    change = site.begin(asked)
    change.head(reply(b"")[0])
    assert site.begin(request("/page", query="a=1&utm_source=1")).response is None
    site.finish(change)


def test_a_change_that_is_not_sent_yet_is_seen_where_the_field_became_known_meanwhile():
    """The process did not know the canonical form when the request began."""
    stored = searching()
    ask(stored, "a=1")
    site = stored.another_process()
    asked = request("/page", "POST", query="a=1&utm_source=1")
    change = site.begin(asked)
    change.head(reply(b"")[0])
    ask(site, "", "/other")
    assert site.begin(request("/page", query="a=1&utm_source=2")).response is not None
    assert site.begin(request("/page", query="a=1&utm_source=1")).response is None
    site.finish(change)


@pytest.mark.parametrize("purged", ["/page?a=1", "/page?a=1&utm_source=1"])
def test_what_was_being_rendered_during_a_purge_is_not_used(purged):
    """Whichever spelling was purged, and whichever was being rendered."""
    site = searching()
    ask(site, "a=2")
    rendering = site.begin(request("/page", query="utm_source=1&a=1"))
    site.another_process().purge(purged)
    head, body = reply(b"old", cache_control="max-age=60", no_vary_search=UTM)
    rendering.head(head)
    rendering.chunk(body)
    site.finish(rendering)
    for query in ("a=1&utm_source=1", "a=1", "a=1&utm_source=2"):
        assert ask(site, query).body != b"old"


def test_tags_and_everything_reach_it_as_before():
    """Whatever URL it was requested by."""
    site = searching()
    answers(site, UTM, cache_tag="t")
    for what in ({"tags": ("t",)}, {"everything": True}, {"rules": ("/{rest:path}",)}):
        ask(site, "a=1&utm_source=1")
        assert ask(site, "a=1").hit
        site.purge(**what)
        assert not ask(site, "a=1&utm_source=2").hit


def test_a_cdn_gets_the_tags_of_both_urls():
    """So a purge of either reaches its copy, and one URL's head is not sent for another."""
    site = searching(cdn="cloudflare")
    ask(site, "a=1")
    for number in (1, 2, 1):
        tags = (ask(site, f"a=1&utm_source={number}").headers.get("cache-tag") or "").split(",")
        assert [tag for tag in tags if "url:" in tag] == [
            "url:/page?a=1",
            f"url:/page?a=1&utm_source={number}",
        ]
    site.purge("/page?utm_source=9&a=1")
    passed_on = site.cache.for_cdn(Purge(("/page?utm_source=9&a=1",)))
    assert passed_on.cdn_tags == ("url:/page?utm_source=9&a=1", "url:/page?a=1")


# --- Explaining ---------------------------------------------------------------------------------


def test_an_explanation_finds_what_is_stored_for_an_equivalent_url():
    """By the record of the path, in a process that knows nothing."""
    site = searching()
    ask(site, "a=1&utm_source=1")
    ask(site, "a=1")
    asked = request("/page", query="utm_medium=2&a=1")
    explained = run(site.another_process().cache.explain(asked), site.store)
    assert (explained.outcome, explained.url) == ("hit", "/page?a=1")
    assert explained.no_vary_search == 'params=("utm_medium" "utm_source")'
    site.purge("/page?utm_medium=2&a=1")
    explained = run(site.cache.explain(asked), site.store)
    assert explained.outcome == "uri-miss"


def test_an_explanation_says_nothing_of_the_field_where_there_is_none():
    """As before."""
    site = searching(None)
    ask(site, "a=1")
    explained = run(site.cache.explain(request("/page", query="a=1")), site.store)
    assert explained.no_vary_search == ""
