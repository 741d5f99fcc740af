"""The console in real Chromium: clicks, keyboard, light and dark, wide and narrow."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import httpx
import pytest
from playwright.sync_api import expect

from tests.local.browsing import chromium
from tests.local.scene import visits
from upstash_middleware.local import LocalUpstash
from upstash_middleware.local.console import handlers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser, Page
    from upstash_redis import Redis

pytestmark = pytest.mark.browser

PAGES = [handlers.KEYS, handlers.BILL, handlers.LIVE, handlers.FAULTS]
ENTRY = "shop:cache:entry:http://shop.example/products/tea"
HOSTILE = "\"><script>window.hit = 1</script><img src=x onerror='window.hit = 1'>"

CONTRAST = """() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => numbers(colour).slice(0, 3).map((part) => part / 255)
    .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, place) => sum + part * [0.2126, 0.7152, 0.0722][place], 0);
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if ((numbers(colour)[3] ?? 1) > 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const poor = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || element.closest("svg, noscript, .skip")) continue;
    const pair = [light(getComputedStyle(element).color), light(ground(element))].sort();
    const [low, high] = pair[0] < pair[1] ? pair : [pair[1], pair[0]];
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < 4.5) poor.push(`${ratio.toFixed(2)} ${walker.currentNode.data.trim()}`);
  }
  return poor;
}"""


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

    def open_page(**options: object) -> Page:
        context = browser.new_context(base_url=upstash.url, **options)  # type: ignore[arg-type]
        context.set_default_timeout(15_000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
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
    assert page.url == upstash.url + handlers.KEYS
    expect(page.get_by_role("heading", name="Keys")).to_be_visible()
    assert page.evaluate("document.cookie") == ""


def test_the_token_is_asked_for_and_taken(upstash: LocalUpstash, browser: Browser):
    with browser.new_context(base_url=upstash.url) as context:
        page = context.new_page()
        page.goto(handlers.BILL)
        page.get_by_label("Token").fill(upstash.token)
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="Keys")).to_be_visible()


def test_a_key_is_found_opened_and_deleted_by_clicks(
    upstash: LocalUpstash, redis: Redis, opened: Callable[..., Page]
):
    for _ in visits(upstash):
        pass
    page = opened()
    page.get_by_label("Keys beginning with").fill("shop:cache:entry")
    page.get_by_role("button", name="Search").click()
    page.get_by_role("link", name=ENTRY).click()
    expect(page.get_by_role("heading", name="Cached response")).to_be_visible()
    expect(page.get_by_role("region", name="Value").first).to_contain_text("<h1>tea</h1>")
    page.get_by_role("button", name="Delete this key").click()
    expect(page.get_by_role("status")).to_have_text("The key is deleted.")
    assert redis.exists(ENTRY) == 0


def open_session(page: Page) -> str:
    """Open the page of the only session by clicks; return its key."""
    page.get_by_label("Keys beginning with").fill("shop:session:")
    page.get_by_role("button", name="Search").click()
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
    expect(page.get_by_text("over ended with all sessions of its user")).to_be_visible()
    page.get_by_role("button", name="Delete this key").click()
    expect(page.get_by_role("status")).to_have_text("The key is deleted.")
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
    page.get_by_role("link", name="Live", exact=True).click()
    expect(page.get_by_text("Watching", exact=True)).to_be_visible()
    redis.set("greeting", HOSTILE)
    line = page.get_by_role("listitem").filter(has_text="greeting")
    expect(line).to_contain_text(HOSTILE)
    page.get_by_role("button", name="Pause").click()
    page.wait_for_function("document.getElementById('state').textContent === 'Paused'")
    redis.set("unseen", "v")
    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_text("Watching", exact=True)).to_be_visible()
    redis.set("seen-again", "v")
    expect(page.get_by_role("listitem").filter(has_text="seen-again")).to_be_visible()
    expect(page.get_by_role("listitem").filter(has_text="unseen")).to_have_count(0)
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#lines li")).to_have_count(0)
    assert page.evaluate("window.hit") is None


def test_what_keys_and_values_hold_is_never_run(redis: Redis, opened: Callable[..., Page]):
    redis.set(HOSTILE, HOSTILE)
    redis.hset("hash", HOSTILE, HOSTILE)
    page = opened()
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
        expect(page.get_by_role("heading")).to_have_text("Not for other pages")
        assert redis.get("k") == "v"


def test_without_script_all_but_live_works(redis: Redis, opened: Callable[..., Page]):
    redis.set("k", "v")
    page = opened(java_script_enabled=False)
    page.get_by_role("link", name="k", exact=True).click()
    page.get_by_role("button", name="Delete this key").click()
    expect(page.get_by_role("status")).to_have_text("The key is deleted.")
    page.get_by_role("link", name="Faults", exact=True).click()
    page.get_by_role("switch", name="quota").click()
    expect(page.get_by_role("switch", name="quota")).to_be_checked()
    page.get_by_role("link", name="Bill", exact=True).click()
    expect(page.get_by_role("img")).to_be_visible()
    page.get_by_role("link", name="Live", exact=True).click()
    expect(page.get_by_text("Live commands need the page's script.")).to_be_visible()


@pytest.mark.parametrize("width", [320, 390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_and_can_be_read(
    upstash: LocalUpstash, redis: Redis, opened: Callable[..., Page], scheme: str, width: int
):
    """No page is wider than its window, and no text has less contrast than 4.5 (WCAG 2.2 AA)."""
    for _ in visits(upstash):
        pass
    redis.set("a:very:long:key:" + "x" * 300, "y" * 3000)
    (session,) = redis.keys("shop:session:*")
    upstash.set_faults(fault="quota", latency_ms=20)
    page = opened(color_scheme=scheme, viewport={"width": width, "height": 800})
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(14, 21, 18)"
    assert dark is (scheme == "dark")
    long = page.get_by_role("link", name="a:very:long").get_attribute("href")
    for address in [*PAGES, *(f"{handlers.KEY}?key={key}" for key in (ENTRY, session)), long]:
        assert address
        page.goto(address)
        page.locator("#state.on").wait_for() if address == handlers.LIVE else None
        assert page.evaluate("document.documentElement.scrollWidth") <= width, address
        assert page.evaluate(CONTRAST) == [], address
