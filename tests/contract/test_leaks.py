"""Nobody is ever sent what was rendered for somebody else, unless the response allowed it."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.contract.neutral import Reply, Seen
from upstash_middleware.core.cache import CacheRule

if TYPE_CHECKING:
    from tests.contract.conftest import Serve
    from tests.contract.neutral import Fields

CONTROLS = ["", "max-age=60", "public", "s-maxage=60", "private", "no-store", "PRIVATE=cookie"]
VARIES = ["", "Cookie", "accept-language", "Cookie, Accept-Language", "*", "Authorization"]
NOT_TO_BE_SHARED = {"private", "no-store"}
FOR_ALL_DESPITE_AUTHORIZATION = {"public", "s-maxage=60"}


@dataclass(frozen=True)
class Ask:
    """One request, and what the application is to say about its response."""

    host: str
    cookie: str
    authorization: str
    language: str
    control: str
    vary: str
    sets_cookie: bool

    def fields(self) -> Fields:
        sent = {
            "cookie": self.cookie,
            "authorization": self.authorization,
            "accept-language": self.language,
            "x-control": self.control,
            "x-vary": self.vary,
            "x-sets-cookie": "yes" if self.sets_cookie else "",
        }
        return tuple((name, value) for name, value in sent.items() if value)


ASKS = st.builds(
    Ask,
    host=st.sampled_from(["a.example", "b.example"]),
    cookie=st.sampled_from(["", "session=ada", "session=bob"]),
    authorization=st.sampled_from(["", "Bearer ada", "Bearer bob"]),
    language=st.sampled_from(["", "de", "en"]),
    control=st.sampled_from(CONTROLS),
    vary=st.sampled_from(VARIES),
    sets_cookie=st.booleans(),
)


class Renders:
    """The application: every response says for whom it was rendered, and is the n-th."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, request: Seen) -> Reply:
        self.count += 1
        names = ("host", "cookie", "authorization", "accept-language", "x-control", "x-vary")
        rendered = {name: request.header(name) or "" for name in names}
        rendered["sets-cookie"] = request.header("x-sets-cookie") or ""
        fields = {
            "content-type": "application/json",
            "cache-control": rendered["x-control"],
            "vary": rendered["x-vary"],
            "set-cookie": "session=new" if rendered["sets-cookie"] else "",
        }
        body = json.dumps({"n": self.count, **rendered}).encode()
        return Reply(body, headers=tuple(field for field in fields.items() if field[1]))


def test_no_identity_is_sent_what_was_rendered_for_another(serve: Serve):
    """RFC 9111 §3, §3.5 and §4.1, and the safe profile's rules for cookies."""
    renders = Renders()
    served = serve(renders, ("CacheMiddleware", {"cache": [CacheRule("/page/{id}", ttl=60)]}))
    pages = itertools.count()
    reused: list[dict[str, str]] = []

    @settings(
        max_examples=75,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.nested_given],
    )
    @given(st.lists(ASKS, min_size=2, max_size=6))
    def holds(asks: list[Ask]) -> None:
        path = f"/page/{next(pages)}"
        for ask in asks:
            before = renders.count
            answer = served.request("GET", path, ask.fields(), host=ask.host)
            rendered = json.loads(answer.body)
            if renders.count == before:
                reused.append(rendered)
                assert_shareable(rendered, ask)

    holds()
    assert reused, "or this test has shown nothing"


def assert_shareable(rendered: dict[str, str], ask: Ask) -> None:
    asked = {
        "host": ask.host,
        "cookie": ask.cookie,
        "authorization": ask.authorization,
        "accept-language": ask.language,
    }
    vary = [name.strip().lower() for name in rendered["x-vary"].split(",") if name]
    assert rendered["host"] == ask.host
    assert rendered["x-control"] not in NOT_TO_BE_SHARED
    assert not rendered["sets-cookie"]
    assert "*" not in vary
    for name in vary:
        assert rendered[name] == asked[name]
    if rendered["cookie"]:
        assert "cookie" in vary
    if rendered["authorization"]:
        assert rendered["x-control"] in FOR_ALL_DESPITE_AUTHORIZATION
