"""What other packages' response caches get wrong, in each framework."""

from __future__ import annotations

import ast
import pickle
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import upstash_middleware
from tests.cache.world import Site, request
from tests.cache.world import reply as world_reply
from tests.contract.neutral import Reply, Seen
from upstash_middleware.core.cache import CacheRule

if TYPE_CHECKING:
    from tests.contract.conftest import Serve
    from tests.contract.neutral import Answer, Served

IMPORTS = (ast.Import, ast.ImportFrom)
FORBIDDEN = {"pickle", "marshal", "shelve", "dill", "cloudpickle"}
CACHE = ("CacheMiddleware", {"cache": [CacheRule("/{rest:path}", ttl=60)]})


def status_of(answer: Answer) -> str:
    return answer.header("cache-status") or ""


def naming(request: Seen) -> Reply:
    """Answer with all that tells one request from another, and a cookie to steal."""
    who = request.header("authorization") or "nobody"
    text = f"{request.method} {request.header('host')} {request.path}?{request.query} {who}"
    fields = (("content-type", "text/plain"), ("x-for", who))
    return Reply(text.encode(), headers=fields)


def test_a_post_with_another_host_query_and_credentials_gets_its_own_answer(serve: Serve):
    """flask-caching#270, #104, #71: it got the page of another one's GET, cookie included."""
    served = serve(naming, CACHE)
    for _ in range(2):
        served.request("GET", "/page?a=1", host="a.example")
    answer = served.request(
        "POST", "/page?a=2", (("authorization", "Bearer bob"),), host="b.example"
    )
    assert answer.body == b"POST b.example /page?a=2 Bearer bob"
    again = served.request("GET", "/page?a=2", host="b.example")
    assert again.body == b"GET b.example /page?a=2 nobody"


@pytest.mark.parametrize(
    "fields",
    [
        (("vary", "*"),),
        (("vary", "Accept"), ("vary", "*")),
        (("cache-control", "PRIVATE"),),
        (("cache-control", "max-age=60, No-Store"),),
        (("set-cookie", "session=ada"),),
    ],
    ids=str,
)
def test_what_is_one_users_is_given_to_nobody_else(serve: Serve, fields):
    """CVE-2026-6907, CVE-2026-8404; hishel, flask-caching and Django replay cookies."""
    count = 0

    def page(_: Seen) -> Reply:
        nonlocal count
        count += 1
        return Reply(str(count).encode(), headers=(("content-type", "text/plain"), *fields))

    served = serve(page, CACHE)
    answers = [served.request("GET", "/page") for _ in range(2)]
    assert [answer.body for answer in answers] == [b"1", b"2"]
    assert all("; stored" not in status_of(answer) for answer in answers)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((("authorization", "Bearer ada"),), ()),
        ((("cookie", "session=ada"),), ()),
        ((("cookie", "session=ada"),), (("cookie", "session=bob"),)),
    ],
    ids=["authorization", "cookie and none", "two cookies"],
)
def test_what_was_rendered_for_an_identity_is_not_given_to_another(serve: Serve, first, second):
    """CVE-2026-35193, CVE-2026-48588."""

    def page(request: Seen) -> Reply:
        who = request.header("authorization") or request.header("cookie") or "nobody"
        return Reply(who.encode())

    served = serve(page, CACHE)
    served.request("GET", "/page", first)
    expected = dict(second).get("cookie", "nobody")
    assert served.request("GET", "/page", second).body == expected.encode()


def test_a_field_that_is_empty_is_not_one_that_is_absent(serve: Serve):
    """CVE-2026-113593: they shared a key."""

    def page(request: Seen) -> Reply:
        said = "absent" if request.header("x-tenant") is None else "there"
        return Reply(said.encode(), headers=(("content-type", "text/plain"), ("vary", "X-Tenant")))

    served = serve(page, CACHE)
    assert served.request("GET", "/page").body == b"absent"
    assert served.request("GET", "/page", (("x-tenant", ""),)).body == b"there"


@pytest.mark.parametrize("condition", ['"page"', "*"])
def test_a_condition_opens_no_door_that_is_shut(serve: Serve, condition):
    """cashews answers 304 for any URL whose ETag it has seen, a 401's too."""

    def page(request: Seen) -> Reply:
        if request.path == "/secret":
            return Reply(b"who are you?", status=401)
        return Reply(b"page", headers=(("content-type", "text/plain"), ("etag", '"page"')))

    served = serve(page, CACHE)
    served.request("GET", "/page")
    assert served.request("GET", "/page", (("if-none-match", condition),)).status == 304
    answer = served.request("GET", "/secret", (("if-none-match", condition),))
    assert (answer.status, answer.body) == (401, b"who are you?")


@pytest.mark.parametrize("status", [404, 410, 301])
def test_a_stored_status_comes_back_as_it_was(serve: Serve, status):
    """fastapi-cache#140: a cached 404 came back as 200."""
    own = (("cache-control", "max-age=60"), ("location", "/there"), ("x-own", "kept"))
    fields = (("content-type", "text/plain"), *own)
    served = serve(lambda _: Reply(b"gone", status=status, headers=fields), CACHE)
    served.request("GET", "/page")
    answer = served.request("GET", "/page")
    assert "; hit" in status_of(answer)
    assert (answer.status, answer.body, answer.header("x-own")) == (status, b"gone", "kept")


class Ran(Exception):
    """Somebody has unpickled what stood in the database."""


class Bomb:
    """What runs code wherever it is unpickled."""

    def __reduce__(self):
        return (exec, ("from tests.faults_of_peers.test_caches import Ran; raise Ran",))


def test_a_pickle_in_the_database_runs_nothing():
    """flask-caching#345, CVE-2021-33026: whoever writes to the store ran code in the server."""
    with pytest.raises(Ran):
        pickle.loads(pickle.dumps(Bomb()))
    site = Site()
    site.visit()
    for key, (_, until) in site.store.values.items():
        site.store.values[key] = (pickle.dumps(Bomb()), until)
    assert not site.visit().hit


def test_nothing_imports_pickle():
    """Nor any other module that makes objects, or code, of bytes; but for signed pickles."""
    package = Path(upstash_middleware.__file__).parent
    for path in set(package.rglob("*.py")) - {package / "core" / "pickles.py"}:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [
                alias.name for alias in getattr(node, "names", ()) if node.__class__ in IMPORTS
            ]
            module = getattr(node, "module", None) or ""
            assert not FORBIDDEN & {module.partition(".")[0], *names}, path


def test_tags_leave_no_index_behind():
    """Sets of the keys under each tag only grow; here a tag is a number that moves."""
    site = Site((CacheRule("/p/{id}", ttl=60, tags=("p:{id}",)),))
    site.app = lambda _: world_reply(cache_tag="a, b, c")
    for number in range(20):
        site.visit(request(f"/p/{number}"))
    assert len(site.store.values) == 20
    site.purge(tags=("a",))
    assert len(site.store.values) == 22, "the epochs of that tag, and of tags at all"
    site.clock.advance(8 * 24 * 3600)
    assert all(until <= site.clock.now for _, until in site.store.values.values())


def test_a_page_that_a_forged_host_got_into_is_given_to_nobody(serve: Serve):
    """Poisoning by X-Forwarded-Host, which selects nothing and is reflected."""

    def page(request: Seen) -> Reply:
        return Reply(f"<a href=//{request.header('x-forwarded-host') or 'shop'}/>".encode())

    served: Served = serve(page, CACHE)
    served.request("GET", "/page", (("x-forwarded-host", "evil.example"),))
    assert b"evil" not in served.request("GET", "/page").body
