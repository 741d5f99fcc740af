"""Each recipe is an application that does what its heading says."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from fastapi.testclient import TestClient

from tests.docs.pages import ROOT, blocks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flask.testing import FlaskClient

    from upstash_middleware.local import LocalUpstash

FASTAPI = ROOT / "docs" / "recipes" / "fastapi.md"
FLASK = ROOT / "docs" / "recipes" / "flask.md"

pytestmark = pytest.mark.usefixtures("upstash")


def recipes(page: Any) -> dict[str, str]:
    """Return the code of each recipe by its heading; those with files are followed elsewhere."""
    lines = page.read_text().splitlines()
    found: dict[str, str] = {}
    for block in blocks(page):
        heading = next(line for line in reversed(lines[: block.line - 1]) if line.startswith("## "))
        if block.language == "python" and block.file is None:
            assert heading not in found, f"{block} is a second block"
            found[heading.removeprefix("## ")] = block.text
    return found


def made(page: Any, heading: str) -> ModuleType:
    """Return the module that a reader has who pastes a recipe."""
    module = ModuleType("shop")
    sys.modules["shop"] = module
    code = compile(recipes(page)[heading], f"{page.name}: {heading}", "exec", dont_inherit=True)
    exec(code, vars(module))
    return module


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    sys.modules.pop("shop", None)


@contextmanager
def shop(heading: str) -> Iterator[tuple[ModuleType, TestClient]]:
    module = made(FASTAPI, heading)
    with TestClient(module.app, base_url="https://testserver") as client:
        yield module, client


def statuses(client: TestClient, path: str, count: int, **options: Any) -> list[int]:
    return [client.get(path, **options).status_code for _ in range(count)]


def test_every_recipe_is_tested() -> None:
    text = Path(__file__).read_text()
    for heading in (*recipes(FASTAPI), *recipes(FLASK)):
        assert f'"{heading}"' in text, heading


def test_each_api_key_has_its_own_quota() -> None:
    with shop("Limit by API key") as (_, client):
        for key in ("a", "b"):
            assert statuses(client, "/api/tea", 6, headers={"X-API-Key": key}) == [200] * 5 + [429]
        assert client.get("/api/tea").status_code == 200


def test_a_user_counts_on_each_address_and_a_visitor_by_address() -> None:
    with shop("Limit by user, or by address") as (_, client):
        for headers in ({"Authorization": "Bearer token-of-ada"}, {"Authorization": "Bearer x"}):
            assert statuses(client, "/profile", 4, headers=headers) == [200, 200, 200, 429]
        bob = client.get("/profile", headers={"Authorization": "Bearer token-of-bob"})
        assert bob.json() == {"user": "bob"}


def test_only_failed_logins_count() -> None:
    def log_in(client: TestClient, name: str, password: str) -> int:
        form = {"username": name, "password": password}
        return client.post("/login", data=form).status_code

    with shop("Limit login attempts") as (_, client):
        assert [log_in(client, "ada", "correct horse") for _ in range(7)] == [200] * 7
        assert [log_in(client, "ada", "x") for _ in range(6)] == [401] * 5 + [429]
        assert log_in(client, "ada", "correct horse") == 429
        assert log_in(client, "bob", "correct horse") == 200


def test_one_route_is_limited_alone() -> None:
    with shop("Limit one route") as (_, client):
        assert statuses(client, "/search?q=tea", 3) == [200, 200, 429]
        assert statuses(client, "/about", 3) == [200, 200, 200]


def test_all_windows_apply(upstash: LocalUpstash) -> None:
    with shop("Several windows") as (_, client):
        assert statuses(client, "/", 4) == [200, 200, 200, 429]
        upstash.advance(20)
        assert statuses(client, "/", 3) == [200, 200, 429]


def test_a_plan_has_its_limits() -> None:
    def ask(client: TestClient, key: str, count: int) -> list[int]:
        return statuses(client, "/api/tea", count, headers={"X-API-Key": key})

    with shop("Limits by plan") as (_, client):
        assert ask(client, "key-of-bob", 3) == [200, 200, 429]
        assert ask(client, "key-of-ada", 11) == [200] * 10 + [429]
        assert ask(client, "key-of-staff", 12) == [200] * 12


def test_tokens_are_charged_after_the_response() -> None:
    with shop("Charge for tokens") as (_, client):
        headers = {"X-API-Key": "a"}
        first = client.post("/chat", params={"prompt": "tea " * 249}, headers=headers)
        assert first.json() == {"tokens": 996}
        second = client.post("/chat", params={"prompt": "a b"}, headers=headers)
        assert second.status_code == 200
        assert client.post("/chat", params={"prompt": "a"}, headers=headers).status_code == 429


def test_health_checks_and_static_files_are_free(
    upstash: LocalUpstash, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "static").mkdir()
    (tmp_path / "static" / "style.css").write_text("body { color: brown }")
    with shop("Skip health checks and static files") as (_, client):
        assert statuses(client, "/", 2) == [200, 429]
        upstash.reset_bill()
        assert statuses(client, "/health", 3) == [200] * 3
        assert statuses(client, "/static/style.css", 3) == [200] * 3
        assert upstash.bill().commands == 0


def test_a_hit_does_not_call_the_handler() -> None:
    with shop("Cache a JSON endpoint") as (_, client):
        assert [client.get("/products/7").json()["calls"] for _ in range(2)] == [1, 1]
        again = client.get("/products/7")
        assert "hit" in again.headers["cache-status"]
        condition = {"If-None-Match": again.headers["etag"]}
        assert client.get("/products/7", headers=condition).status_code == 304


def test_only_anonymous_visitors_share_a_page() -> None:
    with shop("Cache for anonymous visitors only") as (_, client):
        assert [client.get("/").json()["calls"] for _ in range(2)] == [1, 1]
        cookie = {"Cookie": "session=1"}
        assert client.get("/", headers=cookie).json() == {"personal": True, "calls": 2}
        assert client.get("/", headers={"Authorization": "Bearer x"}).json()["calls"] == 3
        assert client.get("/").json()["calls"] == 1


def test_only_some_query_parameters_select_a_response() -> None:
    with shop("Cache by query parameter") as (_, client):
        same = ("page=2&sort=price", "sort=price&page=2", "page=2&sort=price&utm_source=x")
        assert [client.get(f"/products?{each}").json()["calls"] for each in same] == [1, 1, 1]
        assert client.get("/products?page=3&sort=price").json()["calls"] == 2


def test_a_change_is_shown_at_once() -> None:
    with shop("Purge on save") as (module, client):
        assert client.get("/products/7").json()["price"] == 100
        module.PRICES[7] = 120
        assert client.get("/products/7").json()["price"] == 100
        client.post("/admin/products/7", params={"price": 130})
        assert client.get("/products/7").json()["price"] == 130


def test_a_result_is_kept() -> None:
    with shop("Memoize a function") as (module, client):
        assert client.get("/weather/Assam").json() == client.get("/weather/Assam").json()
        client.get("/weather/Ceylon")
        assert module.loaded == ["Assam", "Ceylon"]


def test_a_login_lasts_until_the_logout() -> None:
    with shop("Log in and out") as (_, client):
        assert client.get("/me").status_code == 401
        client.post("/login", data={"name": "ada"})
        assert client.get("/me").json() == {"user": "ada"}
        client.post("/logout")
        assert client.get("/me").status_code == 401


def test_a_basket_keeps_each_product() -> None:
    with shop("A shopping basket") as (_, client):
        client.post("/basket/7")
        client.post("/basket/7", params={"pieces": 2})
        client.post("/basket/8")
        assert client.get("/basket").json() == {"product:7": 3, "product:8": 1}


def test_a_denial_is_the_applications_page() -> None:
    with shop("A custom 429 response") as (_, client):
        assert client.get("/").status_code == 200
        denied = client.get("/")
        assert denied.status_code == 429
        assert "<h1>Slow down</h1>" in denied.text
        assert "retry-after" in denied.headers


def test_each_tenant_has_its_own_quota() -> None:
    with shop("A custom identifier") as (_, client):
        for name in ("a", "b"):
            host = {"Host": f"{name}.shop.example"}
            assert statuses(client, "/", 3, headers=host) == [200, 200, 429]
        assert client.get("/").status_code == 200


def test_each_source_of_webhooks_has_its_own_quota() -> None:
    with shop("Webhooks") as (_, client):
        sent = [client.post("/webhooks/a").status_code for _ in range(7)]
        assert sent[:5] == [200] * 5
        assert 429 in sent
        assert client.post("/webhooks/b").status_code == 200


def test_a_query_costs_its_points() -> None:
    with shop("GraphQL by operation cost") as (_, client):
        query = {"query": "{ products(first: 18) { name } }"}
        assert client.post("/graphql", json=query).json() == {"cost": 19}
        assert client.post("/graphql", json={"query": "{ me }"}).status_code == 200
        assert client.post("/graphql", json={"query": "{ me }"}).status_code == 429


def test_jobs_are_limited() -> None:
    with shop("Limit background jobs") as (module, client):
        for _ in range(3):
            client.post("/invite", params={"address": "ada@example.com"})
        assert (len(module.sent), len(module.postponed)) == (2, 1)


def test_a_client_counts_by_the_address_that_cloudflare_sends() -> None:
    with shop("Behind Cloudflare, or on a platform") as (_, client):
        for address in ("203.0.113.7", "203.0.113.8"):
            fields = {"CF-Connecting-IP": address, "X-Forwarded-For": "1.2.3.4"}
            assert client.get("/", headers=fields).json() == f"ip={address}"
            assert statuses(client, "/", 2, headers=fields) == [200, 429]


def test_a_shadow_rule_denies_nothing() -> None:
    with shop("Try a limit before you enforce it") as (module, client):
        assert statuses(client, "/api/tea", 4) == [200] * 4
        assert len(module.would_deny) == 2


# Flask


@contextmanager
def flask_shop(heading: str) -> Iterator[tuple[ModuleType, FlaskClient]]:
    module = made(FLASK, heading)
    with module.app.test_client() as client:
        yield module, client


def codes(client: FlaskClient, path: str, count: int, **options: Any) -> list[int]:
    return [client.get(path, **options).status_code for _ in range(count)]


def test_in_flask_each_api_key_has_its_own_quota() -> None:
    with flask_shop("Limit by API key") as (_, client):
        for key in ("a", "b"):
            assert codes(client, "/api/tea", 6, headers={"X-API-Key": key}) == [200] * 5 + [429]


def test_in_flask_a_user_has_a_quota() -> None:
    with flask_shop("Limit by user, or by address") as (_, client):
        assert codes(client, "/profile", 4) == [200, 200, 200, 429]
        client.post("/login/ada")
        assert codes(client, "/profile", 4) == [200, 200, 200, 429]
        client.post("/login/bob")
        assert client.get("/profile").json == {"user": "bob"}


def test_in_flask_only_failed_logins_count() -> None:
    def log_in(client: FlaskClient, name: str, password: str) -> int:
        form = {"username": name, "password": password}
        return client.post("/login", data=form).status_code

    with flask_shop("Limit login attempts") as (_, client):
        assert [log_in(client, "ada", "correct horse") for _ in range(7)] == [200] * 7
        assert [log_in(client, "ada", "x") for _ in range(6)] == [401] * 5 + [429]
        assert log_in(client, "bob", "correct horse") == 200


def test_in_flask_one_view_is_limited_alone() -> None:
    with flask_shop("Limit one view") as (_, client):
        assert codes(client, "/search", 3) == [200, 200, 429]
        assert codes(client, "/about", 3) == [200, 200, 200]


def test_in_flask_health_checks_and_static_files_are_free(upstash: LocalUpstash) -> None:
    with flask_shop("Skip health checks and static files") as (_, client):
        assert codes(client, "/", 2) == [200, 429]
        upstash.reset_bill()
        assert codes(client, "/health", 3) == [200] * 3
        assert codes(client, "/static/missing.css", 3) == [404] * 3
        assert upstash.bill().commands == 0


def test_in_flask_a_hit_does_not_call_the_view() -> None:
    with flask_shop("Cache a JSON view") as (_, client):
        assert [client.get("/products/7").get_json()["calls"] for _ in range(2)] == [1, 1]


def test_in_flask_only_anonymous_visitors_share_a_page() -> None:
    with flask_shop("Cache for anonymous visitors only") as (_, client):
        assert [client.get("/news").get_json()["calls"] for _ in range(2)] == [1, 1]
        client.post("/login/ada")
        assert [client.get("/news").get_json()["calls"] for _ in range(2)] == [2, 3]


def test_in_flask_a_change_is_shown_at_once() -> None:
    with flask_shop("Purge on save") as (module, client):
        assert client.get("/products/7").get_json()["price"] == 100  # a body that is read is stored
        module.PRICES[7] = 120
        assert client.get("/products/7").get_json()["price"] == 100
        client.post("/admin/products/7?price=130")
        assert client.get("/products/7").get_json()["price"] == 130


def test_in_flask_a_result_is_kept() -> None:
    with flask_shop("Memoize a function") as (module, client):
        assert client.get("/weather/Assam").json == client.get("/weather/Assam").json
        assert module.loaded == ["Assam"]


def test_in_flask_a_login_lasts_until_the_logout() -> None:
    with flask_shop("Log in and out") as (_, client):
        assert client.get("/me").status_code == 401
        client.post("/login/ada")
        assert client.get("/me").json == {"user": "ada"}
        client.post("/logout")
        assert client.get("/me").status_code == 401


def test_in_flask_a_denial_is_the_applications_page() -> None:
    with flask_shop("A custom 429 page") as (_, client):
        assert client.get("/").status_code == 200
        denied = client.get("/")
        assert denied.status_code == 429
        assert "<h1>Slow down</h1>" in denied.text
        assert "Retry-After" in denied.headers


def test_in_flask_jobs_are_limited() -> None:
    with flask_shop("Limit a job") as (_, client):
        said = [client.post("/remind/ada@example.com").get_json()["mail"] for _ in range(3)]
        assert said[:2] == ["sent", "sent"]
        assert said[2].startswith("later, in ")


def test_in_flask_a_shadow_rule_denies_nothing() -> None:
    with flask_shop("Try a limit before you enforce it") as (module, client):
        assert codes(client, "/api/tea", 4) == [200] * 4
        assert len(module.would_deny) == 2
