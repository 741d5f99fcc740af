"""The console in real Chromium: clicks, keyboard, light and dark, wide and narrow."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import httpx
import pytest
from playwright.sync_api import expect

from tests.local.browsing import chromium
from tests.local.scene import values, visits
from upstash_middleware.local import LocalUpstash
from upstash_middleware.local.console import handlers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser, ConsoleMessage, Page
    from upstash_redis import Redis

pytestmark = pytest.mark.browser

PAGES = [
    handlers.OVERVIEW,
    handlers.KEYS,
    handlers.SESSIONS,
    handlers.DATA,
    handlers.COMMANDS,
    handlers.FAULTS,
]
ENTRY = "shop:cache:entry:http://shop.example/products/tea"
HOSTILE = "\"><script>window.hit = 1</script><img src=x onerror='window.hit = 1'>"

AXE = Path(__file__).parents[1] / "node" / "node_modules" / "axe-core" / "axe.min.js"
"""Installed by `make test-all`."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One Chromium for all of these tests."""
    with chromium() as started:
        yield started


@pytest.fixture
def opened(browser: Browser, upstash: LocalUpstash) -> Iterator[Callable[..., Page]]:
    """Opens the console in a new profile, and holds that the browser had nothing to complain of."""
    complaints: list[str] = []
    contexts = []

    def complain(message: ConsoleMessage) -> None:
        if "the server responded with a status of 40" not in message.text:
            complaints.append(message.text)

    def open_page(**options: object) -> Page:
        context = browser.new_context(base_url=upstash.url, **options)  # type: ignore[arg-type]
        context.set_default_timeout(15_000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", complain)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(upstash.console_url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def test_the_printed_address_opens_it_and_leaves_no_secret_behind(
    upstash: LocalUpstash, opened: Callable[..., Page]
):
    page = opened()
    assert page.url == upstash.url + handlers.OVERVIEW
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    assert page.evaluate("document.cookie") == ""


def test_the_token_is_asked_for_and_taken(upstash: LocalUpstash, browser: Browser):
    with browser.new_context(base_url=upstash.url) as context:
        page = context.new_page()
        page.goto(handlers.KEYS)
        page.get_by_label("Token").fill(upstash.token)
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="Overview")).to_be_visible()


def test_a_key_is_found_opened_and_deleted_by_clicks(
    upstash: LocalUpstash, redis: Redis, opened: Callable[..., Page]
):
    for _ in visits(upstash):
        pass
    page = opened()
    page.get_by_role("link", name="Keys", exact=True).click()
    page.get_by_label("Filter by name").fill("cache:entry")
    page.get_by_role("button", name="Filter").click()
    page.get_by_role("link", name=ENTRY).click()
    expect(page.get_by_role("heading", name="Cached response")).to_be_visible()
    expect(page.get_by_role("region", name="Body")).to_contain_text("<h1>tea</h1>")
    page.get_by_role("button", name="Delete this key").click()
    expect(page.get_by_role("status")).to_have_text("1 key is deleted.")
    assert redis.exists(ENTRY) == 0


def open_session(page: Page) -> str:
    """Open the page of the only session by clicks; return its key."""
    page.get_by_role("link", name="Sessions", exact=True).click()
    key = page.get_by_role("link", name="shop:session:").inner_text()
    page.get_by_role("link", name=key).click()
    expect(page.get_by_role("heading", name="Session", exact=True)).to_be_visible()
    return key


def test_a_session_is_found_read_and_ended_by_clicks(
    upstash: LocalUpstash, redis: Redis, opened: Callable[..., Page]
):
    for _ in visits(upstash):
        pass
    page = opened()
    key = open_session(page)
    (user,) = (each.rpartition(":")[2] for each in redis.keys("shop:session-user:*"))
    expect(page.get_by_text(user, exact=True)).to_be_visible()
    entries = page.get_by_role("table", name="Entries").locator("tbody tr > *")
    expect(entries).to_have_text(
        [
            *("cart", "list", "[{'name': 'tea', 'price': Decimal('4.00')}]"),
            *("language", "str", "'en'"),
            *("since", "date", "datetime.date(1865, 7, 4)"),
        ]
    )
    redis.delete(f"shop:session-user:{user}")
    page.reload()
    expect(page.get_by_text("ended with all sessions of its user")).to_be_visible()
    page.get_by_role("button", name="End this session").click()
    expect(page.get_by_role("status")).to_have_text("1 key is deleted.")
    assert redis.exists(key) == 0


def test_what_a_session_contains_is_never_run(redis: Redis, opened: Callable[..., Page]):
    key = f"shop:session:{'a' * 43}"
    head = '[1795646797.5,1795646797.5,"salt",' + json.dumps(HOSTILE) + "]"
    redis.hset(key, values={".": f"\n{head}", f"={HOSTILE}": json.dumps([HOSTILE])})
    page = opened()
    assert open_session(page) == key
    expect(page.get_by_role("rowheader", name=HOSTILE)).to_be_visible()
    assert page.locator("main img, main script").count() == 0
    assert page.evaluate("window.hit") is None


def test_everything_is_done_by_keyboard_alone(
    upstash: LocalUpstash, redis: Redis, opened: Callable[..., Page]
):
    redis.set("a-key", "its value")
    page = opened()

    def reach(name: str) -> None:
        """Press Tab until something of this name has the focus, and see that it shows."""
        for _ in range(40):
            page.keyboard.press("Tab")
            focused = page.locator(":focus")
            if name in (focused.inner_text() or focused.get_attribute("id") or ""):
                outline = focused.evaluate("(element) => getComputedStyle(element).outlineStyle")
                assert outline == "solid", f"the focus on {name} cannot be seen"
                return
        pytest.fail(f"{name} cannot be reached by Tab")

    page.goto(handlers.KEYS)
    page.keyboard.press("Tab")
    expect(page.locator(":focus")).to_have_text("Skip to the content")
    page.keyboard.press("Enter")
    reach("q")
    page.keyboard.type("a-")
    page.keyboard.press("Enter")
    page.wait_for_url("**q=a-")
    reach("a-key")
    page.keyboard.press("Enter")
    expect(page.get_by_role("region", name="Value")).to_have_text("its value")
    reach("Faults")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Faults")).to_be_visible()
    reach("quota")
    page.keyboard.press("Space")
    expect(page.get_by_role("switch", name="quota")).to_be_checked()
    assert current_fault(upstash) == "quota"


def current_fault(upstash: LocalUpstash) -> str | None:
    headers = {"Authorization": f"Bearer {upstash.token}"}
    fault: str | None = httpx.get(f"{upstash.url}/-/faults", headers=headers).json()["fault"]
    return fault


def test_switches_turn_faults_on_and_off(upstash: LocalUpstash, opened: Callable[..., Page]):
    page = opened()
    page.get_by_role("link", name="Faults", exact=True).click()
    page.get_by_label("Latency").fill("20")
    page.get_by_role("switch", name="bad-gateway").click()
    switch = page.get_by_role("switch", name="bad-gateway")
    expect(switch).to_be_checked()
    expect(page.get_by_text("Now: bad-gateway, 20 ms late")).to_be_visible()
    headers = {"Authorization": f"Bearer {upstash.token}"}
    assert httpx.get(f"{upstash.url}/ping", headers=headers).status_code == 502
    switch.click()
    expect(switch).not_to_be_checked()
    expect(page.get_by_text("Now: 20 ms late")).to_be_visible()
    page.get_by_role("button", name="Remove all faults").click()
    expect(page.get_by_text("Now: none")).to_be_visible()


def test_commands_appear_while_somebody_watches(redis: Redis, opened: Callable[..., Page]):
    page = opened()
    page.get_by_role("link", name="Commands", exact=True).click()
    expect(page.get_by_text("Watching", exact=True)).to_be_visible()
    redis.set("greeting", HOSTILE)
    line = page.get_by_role("listitem").filter(has_text="greeting")
    expect(line).to_contain_text(HOSTILE)
    page.get_by_role("button", name="Pause updates").click()
    page.wait_for_function("document.getElementById('state').textContent === 'Paused'")
    redis.set("unseen", "v")
    page.get_by_role("button", name="Resume updates").click()
    expect(page.get_by_text("Watching", exact=True)).to_be_visible()
    redis.set("seen-again", "v")
    expect(page.get_by_role("listitem").filter(has_text="seen-again")).to_be_visible()
    expect(page.get_by_role("listitem").filter(has_text="unseen")).to_have_count(0)
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#lines li")).to_have_count(0)
    assert page.evaluate("window.hit") is None


def test_commands_are_run_by_keyboard(redis: Redis, opened: Callable[..., Page]):
    page = opened()
    page.get_by_role("link", name="Commands", exact=True).click()
    expect(page.get_by_label("Run a command")).to_be_focused()
    page.keyboard.type("SET k 'two words'")
    page.keyboard.press("Enter")
    expect(page.get_by_role("region", name="Reply")).to_have_text("OK")
    expect(page.get_by_text("Billed: 1 command")).to_be_visible()
    expect(page.get_by_role("listitem").filter(has_text="two words")).to_have_count(1)
    assert redis.get("k") == "two words"


def test_a_value_and_its_expiry_are_changed_in_the_browser(
    redis: Redis, opened: Callable[..., Page]
):
    redis.set("k", "first\nsecond")
    page = opened()
    page.goto(f"{handlers.KEY}?key=k")
    page.get_by_text("Change the value").click()
    page.get_by_label("Value", exact=True).and_(page.locator("textarea")).fill("one\ntwo\n")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("status")).to_have_text("The value is set.")
    assert redis.get("k") == "one\ntwo\n"
    page.get_by_label("Expires after").fill("60")
    page.get_by_role("button", name="Set", exact=True).click()
    expect(page.get_by_role("status")).to_have_text("The expiry is changed.")
    assert 50 < redis.ttl("k") <= 60


def test_selected_keys_are_deleted(redis: Redis, opened: Callable[..., Page]):
    redis.mset({"a:1": "v", "a:2": "v", "b:1": "v"})
    page = opened()
    page.goto(handlers.KEYS)
    page.get_by_role("navigation", name="Namespaces").get_by_role("link", name="a 2").click()
    for key in ("a:1", "a:2"):
        page.get_by_label(f"Select {key}").check()
    page.get_by_role("button", name="Delete selected").click()
    expect(page.get_by_role("status")).to_have_text("2 keys are deleted.")
    assert redis.keys("*") == ["b:1"]


def test_pages_refresh_unless_they_are_paused_or_in_use(redis: Redis, opened: Callable[..., Page]):
    """A selection, a checked box and an open part are left alone."""
    redis.set("first", "v")
    page = opened()
    page.clock.install()
    page.goto(handlers.KEYS)
    refresh = page.get_by_role("button", name="Pause updates")

    def listed(key: str) -> bool:
        page.clock.run_for(6000)
        page.wait_for_load_state("networkidle")
        return page.get_by_role("link", name=key).count() == 1

    redis.set("second", "v")
    page.clock.run_for(6000)
    expect(page.get_by_role("link", name="second")).to_be_visible()
    page.get_by_label("Select first").check()
    redis.set("third", "v")
    assert not listed("third")
    page.get_by_label("Select first").uncheck()
    page.evaluate("document.activeElement.blur()")
    page.evaluate("getSelection().selectAllChildren(document.querySelector('#list table'))")
    assert not listed("third")
    page.evaluate("getSelection().empty()")
    page.get_by_role("link", name="first").focus()
    page.clock.run_for(6000)
    expect(page.get_by_role("link", name="third")).to_be_visible()
    expect(page.get_by_role("link", name="first")).to_be_focused()
    refresh.click()
    redis.set("fourth", "v")
    assert not listed("fourth")
    page.reload()
    expect(page.get_by_role("link", name="fourth")).to_be_visible()
    redis.set("fifth", "v")
    assert not listed("fifth")  # a pause lasts beyond the page
    page.get_by_role("button", name="Resume updates").click()
    expect(page.get_by_role("link", name="fifth")).to_be_visible()


def test_what_keys_and_values_hold_is_never_run(redis: Redis, opened: Callable[..., Page]):
    redis.set(HOSTILE, HOSTILE)
    redis.hset("hash", HOSTILE, HOSTILE)
    page = opened()
    page.goto(handlers.KEYS)
    page.get_by_role("link", name=HOSTILE).first.click()
    expect(page.get_by_role("region", name="Value")).to_have_text(HOSTILE)
    page.goto(f"{handlers.KEY}?key=hash")
    expect(page.get_by_role("cell", name=HOSTILE).first).to_be_visible()
    assert page.locator("main img, main script").count() == 0
    assert page.evaluate("window.hit") is None


def test_a_page_elsewhere_can_neither_read_nor_flip_anything(
    upstash: LocalUpstash, redis: Redis, browser: Browser
):
    """Of a page on another port of this machine the browser thinks as of the same site."""
    redis.set("k", "v")
    with LocalUpstash() as elsewhere, browser.new_context() as context:
        page = context.new_page()
        page.goto(upstash.console_url)
        page.goto(elsewhere.url)  # an answer in JSON, whose page has no policy of its own
        tried = page.evaluate(
            """async (console_) => {
              const outcomes = [];
              for (const [path, options] of [
                ["", {}],
                ["/live/events", {}],
                ["/faults", {method: "POST", body: new URLSearchParams({fault: "quota"})}],
                ["/flush", {method: "POST", mode: "no-cors"}],
              ]) {
                try {
                  const answer = await fetch(console_ + path, {credentials: "include", ...options});
                  outcomes.push(answer.type === "opaque" ? "opaque" : await answer.text());
                } catch (error) { outcomes.push("refused"); }
              }
              return outcomes;
            }""",
            upstash.url + handlers.KEYS,
        )
        assert tried == ["refused"] * 4
        assert redis.get("k") == "v"
        assert current_fault(upstash) is None
        page.evaluate(
            """(address) => {
              const form = document.createElement("form");
              Object.assign(form, {method: "post", action: address});
              document.body.append(form);
              form.submit();
            }""",
            upstash.url + handlers.FLUSH,
        )
        expect(page.get_by_role("heading")).to_have_text("Only the console's own pages may do this")
        assert redis.get("k") == "v"


def test_everything_but_updates_works_without_script(redis: Redis, opened: Callable[..., Page]):
    redis.set("k", "v")
    page = opened(java_script_enabled=False)
    expect(page.get_by_role("img")).to_be_visible()
    page.get_by_role("link", name="Keys", exact=True).click()
    page.get_by_role("link", name="k", exact=True).click()
    page.get_by_role("button", name="Delete this key").click()
    expect(page.get_by_role("status")).to_have_text("1 key is deleted.")
    page.get_by_role("link", name="Faults", exact=True).click()
    page.get_by_role("switch", name="quota").click()
    expect(page.get_by_role("switch", name="quota")).to_be_checked()
    page.get_by_role("link", name="Commands", exact=True).click()
    expect(page.get_by_role("listitem").filter(has_text="SET")).to_be_visible()
    expect(page.get_by_role("button", name="Pause updates")).to_be_hidden()


@pytest.mark.parametrize("width", [320, 390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_and_can_be_read(
    upstash: LocalUpstash, redis: Redis, opened: Callable[..., Page], scheme: str, width: int
):
    """No page is wider than its window, and axe finds nothing (WCAG 2.2 AA and best practices)."""
    for _ in visits(upstash):
        pass
    values(upstash)
    redis.set("a:very:long:key:" + "x" * 300, "y" * 3000)
    page = opened(color_scheme=scheme, viewport={"width": width, "height": 800})
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(14, 21, 18)"
    assert dark is (scheme == "dark")
    shown = [key for key in redis.keys("*") if re.search("very|/products/tea|data:|api|price", key)]
    shown += [redis.keys("shop:session:*")[0], "no such key", "log in"]
    opened_keys = [f"{handlers.KEY}?key={quote(key, safe='')}" for key in shown]
    for address in [*PAGES, f"{handlers.KEYS}?under=shop:cache:entry:", *opened_keys]:
        fault = {"fault": "quota", "latency_ms": 20} if address == handlers.FAULTS else {}
        upstash.set_faults(**fault)
        if address == opened_keys[-1]:  # and then the page to log in
            page.context.clear_cookies()
        page.goto(address)
        if address == handlers.COMMANDS:
            page.get_by_label("Run a command").fill("KEYS *")
            page.keyboard.press("Enter")
            page.locator("#state.on").wait_for()
        for part in page.locator("details").all():
            part.evaluate("(element) => { element.open = true; }")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, address
        page.evaluate(AXE.read_text())
        found = page.evaluate("axe.run()")
        problems = [
            (each["id"], [node["html"] for node in each["nodes"]]) for each in found["violations"]
        ]
        assert problems == [], address
