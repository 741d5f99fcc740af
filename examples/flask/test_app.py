"""The shop does what its README says, against a local Upstash."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flask.testing import FlaskClient
    from werkzeug.test import TestResponse

    from upstash_middleware.local import LocalUpstash

pytestmark = pytest.mark.usefixtures("upstash")


@pytest.fixture
def client() -> Iterator[FlaskClient]:
    """A client of an application that was imported anew."""
    path = Path(__file__).with_name("app.py")
    spec = importlib.util.spec_from_file_location("flask_example", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module.app.test_client()
    (middleware,) = module.app.extensions["upstash_middleware"].values()
    middleware.runtime.close()


def page(client: FlaskClient, **headers: str) -> TestResponse:
    """Return the tea's page, whose response is closed: what is stored is stored then."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.get("/catalogue/tea", headers=fields, buffered=True)


def test_the_front_page_says_what_to_try(client: FlaskClient) -> None:
    assert "POST /api/generate" in client.get("/").text


def test_ten_texts_are_generated_and_the_eleventh_has_to_wait(client: FlaskClient) -> None:
    for remaining in range(9, -1, -1):
        response = client.post("/api/generate")
        assert response.status_code == 200
        assert response.headers["X-RateLimit-Remaining"] == str(remaining)
        assert f"You may ask {remaining} more times" in response.get_json()["text"]
    denied = client.post("/api/generate")
    assert denied.status_code == 429
    assert 1 <= int(denied.headers["Retry-After"]) <= 20
    assert client.get("/").status_code == 200, "only what is expensive is limited so tightly"


def test_a_page_is_rendered_once_until_its_product_is_edited(client: FlaskClient) -> None:
    first, second = page(client), page(client)
    assert "fwd=uri-miss; stored" in first.headers["Cache-Status"]
    assert "hit" in second.headers["Cache-Status"]
    assert "Age" in second.headers
    assert "4.00 a packet" in first.text
    assert second.text == first.text
    confirmed = page(client, If_None_Match=first.headers["ETag"])
    assert (confirmed.status_code, confirmed.data) == (304, b"")

    assert client.put("/catalogue/tea", json={"price": 5.5}).status_code == 204
    edited = page(client)
    assert "5.50 a packet" in edited.text
    assert "Age" not in edited.headers


@pytest.mark.parametrize("price", [None, "free", -1])
def test_a_price_that_is_none_changes_nothing(client: FlaskClient, price: object) -> None:
    assert client.put("/catalogue/tea", json={"price": price}).status_code == 400
    assert "4.00 a packet" in page(client).text


def test_a_product_that_is_not_there_is_not_found(client: FlaskClient) -> None:
    assert client.get("/catalogue/gold").status_code == 404
    assert client.put("/catalogue/gold", json={"price": 1}).status_code == 404


def test_a_customer_stays_logged_in_until_the_logout(client: FlaskClient) -> None:
    assert client.get("/account").status_code == 401
    assert client.post("/login", json={"name": ""}).status_code == 400
    assert client.post("/login", json={"name": "ada"}).status_code == 204
    cookie = client.get_cookie("session")
    assert cookie is not None
    assert client.get("/account").get_json() == {"name": "ada"}
    assert client.post("/logout").status_code == 204
    client.set_cookie("session", cookie.value)
    assert client.get("/account").status_code == 401


def test_an_outage_logs_nobody_out(client: FlaskClient, upstash: LocalUpstash) -> None:
    client.post("/login", json={"name": "ada"})
    with upstash.faults(fault="bad-gateway"):
        assert client.get("/account").status_code == client.post("/logout").status_code == 503
    assert client.get("/account").get_json() == {"name": "ada"}


def test_what_is_cheapest_is_calculated_once_until_a_price_changes(client: FlaskClient) -> None:
    first, second = (client.get("/cheapest").get_json() for _ in range(2))
    assert first == second
    assert first["name"] == "Tea"
    client.put("/catalogue/cocoa", json={"price": 1})
    assert client.get("/cheapest").get_json()["name"] == "Cocoa"
