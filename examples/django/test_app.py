"""The shop does what its README says: migrated, checked, and served by real servers."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.patience import patient_environment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from upstash_middleware.local import LocalUpstash

HERE = Path(__file__).parent
PATIENCE = 60.0
SERVERS = {
    "runserver": ("manage.py", "runserver", "--noreload"),
    "uvicorn": ("-m", "uvicorn", "shop.asgi:application", "--lifespan", "off", "--port"),
}


@pytest.fixture(scope="module")
def environment(
    upstash_server: LocalUpstash, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """What the shop's processes find: the local Upstash, and a place for their database."""
    data = tmp_path_factory.mktemp("shop")
    return patient_environment() | upstash_server.env | {"EXAMPLE_DATA": str(data)}


def manage(*arguments: str, environment: dict[str, str]) -> str:
    """Run `manage.py` and return what it prints."""
    command = [sys.executable, "manage.py", *arguments]
    ran = subprocess.run(
        command, cwd=HERE, env=environment, check=True, capture_output=True, text=True
    )
    return ran.stdout


@pytest.fixture(scope="module", params=SERVERS)
def served(request: pytest.FixtureRequest, environment: dict[str, str]) -> Iterator[httpx.Client]:
    """The shop, as it is at first, on one server after the other."""
    manage("migrate", "catalogue", "zero", environment=environment)
    manage("migrate", environment=environment)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, *SERVERS[request.param], str(port)]
    address = f"http://127.0.0.1:{port}"
    with running(command, environment), httpx.Client(base_url=address, timeout=PATIENCE) as client:
        wait_for(client)
        yield client


@pytest.fixture
def client(served: httpx.Client, upstash_server: LocalUpstash) -> httpx.Client:
    """A client of the shop, at an empty Upstash."""
    upstash_server.flush()
    served.cookies.clear()
    return served


@contextmanager
def running(command: list[str], environment: dict[str, str]) -> Iterator[None]:
    """Run a server, and leave none behind."""
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, cwd=HERE, env=environment, stdout=quiet, stderr=quiet)
    try:
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE)


def wait_for(client: httpx.Client) -> None:
    """Wait until the server answers."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            client.get("/")
        except httpx.ConnectError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError("the server did not start")


def stored(client: httpx.Client, page: str) -> httpx.Response:
    """Return a page as soon as it comes from the store, which it is put into after it was sent.

    Until then it may be shared with who asks at the same moment; that has an Age as well.
    """
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        response = client.get(page)
        if "; hit" in response.headers["Cache-Status"]:
            return response
        time.sleep(0.1)
    raise AssertionError("the page was never stored")


def test_the_front_page_says_what_to_try(client: httpx.Client) -> None:
    assert "POST /api/generate" in client.get("/").text


def test_ten_texts_are_generated_and_the_eleventh_has_to_wait(client: httpx.Client) -> None:
    if (left := 10 - time.time() % 10) < 7:  # the ten seconds are the clock's
        time.sleep(left)
    for remaining in range(9, -1, -1):
        response = client.post("/api/generate")
        assert response.status_code == 200
        assert response.headers["X-RateLimit-Remaining"] == str(remaining)
        assert f"You may ask {remaining} more times" in response.json()["text"]
    denied = client.post("/api/generate")
    assert denied.status_code == 429
    assert 1 <= int(denied.headers["Retry-After"]) <= 20
    assert client.get("/").status_code == 200, "only what is expensive is limited so tightly"


def test_a_page_is_rendered_once_until_its_product_is_edited(client: httpx.Client) -> None:
    first = client.get("/catalogue/tea")
    assert "fwd=uri-miss; stored" in first.headers["Cache-Status"]
    assert "4.00 a packet" in first.text
    second = stored(client, "/catalogue/tea")
    assert "Age" in second.headers
    confirmed = client.get("/catalogue/tea", headers={"If-None-Match": second.headers["ETag"]})
    assert (confirmed.status_code, confirmed.content) == (304, b"")

    assert client.put("/catalogue/tea", json={"price": 5.5}).status_code == 204
    edited = client.get("/catalogue/tea")
    assert "5.50 a packet" in edited.text
    assert "Age" not in edited.headers


def test_a_wrong_price_changes_nothing_and_gold_is_not_for_sale(client: httpx.Client) -> None:
    for price in (None, "free", -1, True):
        assert client.put("/catalogue/cocoa", json={"price": price}).status_code == 400
    assert "5.00 a packet" in client.get("/catalogue/cocoa").text
    assert client.get("/catalogue/gold").status_code == 404
    assert client.put("/catalogue/gold", json={"price": 1}).status_code == 404


def test_a_product_saved_outside_any_request_purges_its_page_too(
    client: httpx.Client, environment: dict[str, str]
) -> None:
    assert "6.50 a packet" in stored(client, "/catalogue/coffee").text
    save = "from catalogue.models import Product as P; P('coffee', 'Coffee', 7).save()"
    manage("shell", "--no-imports", "-c", save, environment=environment)
    assert "7.00 a packet" in client.get("/catalogue/coffee").text


def test_what_is_cheapest_is_calculated_once_until_a_price_changes(client: httpx.Client) -> None:
    client.put("/catalogue/cocoa", json={"price": 3})
    first, second = (client.get("/cheapest").json() for _ in range(2))
    assert first == second
    assert first["name"] == "Cocoa"
    client.put("/catalogue/cocoa", json={"price": 5})
    assert client.get("/cheapest").json()["calculation"] == first["calculation"] + 1


def test_a_customer_stays_logged_in_until_the_logout_and_through_an_outage(
    client: httpx.Client, upstash_server: LocalUpstash
) -> None:
    assert client.get("/account").status_code == 401
    assert client.post("/login", json={"name": ""}).status_code == 400
    assert client.post("/login", json={"name": "ada"}).status_code == 204
    with upstash_server.faults(fault="bad-gateway"):
        assert client.get("/account").status_code == client.post("/logout").status_code == 503
    assert client.get("/account").json() == {"name": "ada"}
    copied = dict(client.cookies)
    assert client.post("/logout").status_code == 204
    client.cookies = httpx.Cookies(copied)
    assert client.get("/account").status_code == 401


def test_its_settings_pass_the_checks_and_its_migrations_are_up_to_date(
    environment: dict[str, str],
) -> None:
    arguments = ("check", "--deploy", "--tag", "upstash_middleware")
    assert "no issues" in manage(*arguments, environment=environment)
    assert "No changes" in manage("makemigrations", "--check", environment=environment)


def test_checking_and_migrating_need_no_credentials(tmp_path: Path) -> None:
    without = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("UPSTASH_REDIS", "KV_REST"))
    }
    without["EXAMPLE_DATA"] = str(tmp_path)
    assert "no issues" in manage("check", environment=without)
    assert "OK" in manage("migrate", environment=without)
