"""The shop does what its README says, against a local Upstash."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

import pytest
from starlette.testclient import TestClient

from examples.starlette import app as shop

if TYPE_CHECKING:
    from collections.abc import Iterator

    from upstash_middleware.local import LocalUpstash

pytestmark = pytest.mark.usefixtures("upstash")


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """A client of the shop, with the prices that it opens with."""
    monkeypatch.setattr(shop, "PRODUCTS", deepcopy(shop.PRODUCTS))
    with TestClient(shop.app, client=("203.0.113.9", 50000)) as client:
        yield client


def test_the_front_page_says_what_to_try(client: TestClient) -> None:
    assert "POST /api/generate" in client.get("/").text


def test_ten_texts_are_generated_and_the_eleventh_has_to_wait(client: TestClient) -> None:
    for remaining in range(9, -1, -1):
        response = client.post("/api/generate")
        assert response.status_code == 200
        assert response.headers["X-RateLimit-Remaining"] == str(remaining)
        assert f"You may ask {remaining} more times" in response.json()["text"]
    denied = client.post("/api/generate")
    assert denied.status_code == 429
    assert 1 <= int(denied.headers["Retry-After"]) <= 20
    assert client.get("/").status_code == 200, "only what is expensive is limited so tightly"


def test_a_page_is_rendered_once_until_its_product_is_edited(client: TestClient) -> None:
    first, second = client.get("/catalogue/tea"), client.get("/catalogue/tea")
    assert "fwd=uri-miss; stored" in first.headers["Cache-Status"]
    assert "hit" in second.headers["Cache-Status"]
    assert "Age" in second.headers
    assert "4.00 a packet" in first.text
    assert second.text == first.text
    confirmed = client.get("/catalogue/tea", headers={"If-None-Match": first.headers["ETag"]})
    assert (confirmed.status_code, confirmed.content) == (304, b"")

    assert client.put("/catalogue/tea", json={"price": 5.5}).status_code == 204
    edited = client.get("/catalogue/tea")
    assert "5.50 a packet" in edited.text
    assert "Age" not in edited.headers


@pytest.mark.parametrize("price", [None, "free", -1])
def test_a_price_that_is_none_changes_nothing(client: TestClient, price: object) -> None:
    assert client.put("/catalogue/tea", json={"price": price}).status_code == 400
    assert "4.00 a packet" in client.get("/catalogue/tea").text


def test_a_product_that_is_not_there_is_not_found(client: TestClient) -> None:
    assert client.get("/catalogue/gold").status_code == 404
    assert client.put("/catalogue/gold", json={"price": 1}).status_code == 404


def test_a_customer_stays_logged_in_until_the_logout(client: TestClient) -> None:
    assert client.get("/account").status_code == 401
    assert client.post("/login", json={"name": ""}).status_code == 400
    assert client.post("/login", json={"name": "ada"}).status_code == 204
    copied = dict(client.cookies)
    assert client.get("/account").json() == {"name": "ada"}
    assert client.post("/logout").status_code == 204
    client.cookies = copied
    assert client.get("/account").status_code == 401


def test_an_outage_logs_nobody_out(client: TestClient, upstash: LocalUpstash) -> None:
    client.post("/login", json={"name": "ada"})
    with upstash.faults(fault="bad-gateway"):
        assert client.get("/account").status_code == client.post("/logout").status_code == 503
    assert client.get("/account").json() == {"name": "ada"}


def test_what_is_cheapest_is_calculated_once_until_a_price_changes(client: TestClient) -> None:
    first, second = (client.get("/cheapest").json() for _ in range(2))
    assert first == second
    assert first["name"] == "Tea"
    client.put("/catalogue/cocoa", json={"price": 1})
    assert client.get("/cheapest").json()["name"] == "Cocoa"
