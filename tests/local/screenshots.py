"""``make screenshots``: photographs of the console for README and documentation.

What they show is the scene of the tests, played over two minutes of a clock that is moved, so that
the chart has something to draw.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from upstash_redis import Redis

from tests.local.browsing import chromium
from tests.local.scene import values, visits
from upstash_middleware.local import LocalUpstash
from upstash_middleware.local.console import handlers

if TYPE_CHECKING:
    from playwright.sync_api import Browser

IMAGES = Path(__file__).parents[2] / "docs" / "images"
SECONDS = 120
STEP = 2
MOST_BYTES = 120_000

WIDE, NARROW = {"width": 1100, "height": 720}, {"width": 400, "height": 1000}
SHOTS = (
    ("console-light", handlers.OVERVIEW, "light", WIDE),
    ("console-keys", f"{handlers.KEYS}?under=shop:cache:", "light", WIDE),
    ("console-commands", handlers.COMMANDS, "light", WIDE),
    ("console-narrow", handlers.FAULTS, "light", NARROW),
)


def play(upstash: LocalUpstash) -> None:
    """Some traffic, more and less of it over time."""
    chance = random.Random(7)
    rounds = visits(upstash, SECONDS * 3)
    with Redis(upstash.url, upstash.token) as redis:
        redis.hset("user:7", values={"name": "Ada", "born": "1815"})
    for second in range(0, SECONDS, STEP):
        upstash.advance(STEP)
        for _ in range(chance.choice((0, 1, 1, 2, 3)) + second // 60):
            next(rounds)
    rounds.close()
    values(upstash)


def photograph(browser: Browser, upstash: LocalUpstash) -> None:
    """Take every picture."""
    with Redis(upstash.url, upstash.token) as redis:
        (session,) = redis.keys("shop:session:*")
        (limit,) = redis.keys("shop:/api/gcra:*")
    of_keys = [
        (f"console-{name}", f"{handlers.KEY}?key={quote(key)}", "light", WIDE)
        for name, key in (("session", session), ("limit", limit))
    ]
    for name, address, scheme, size in (*SHOTS, *of_keys):
        upstash.set_faults(**({"fault": "quota", "probability": 0.1} if size is NARROW else {}))
        context = browser.new_context(
            base_url=upstash.url,
            color_scheme=scheme,  # type: ignore[arg-type]
            viewport=size,  # type: ignore[arg-type]
        )
        page = context.new_page()
        page.goto(upstash.console_url)
        page.goto(address)
        if address == handlers.COMMANDS:
            page.get_by_label("Run a command").fill("HGETALL user:7")
            page.keyboard.press("Enter")
            page.locator("#state.on").wait_for()
        path = IMAGES / f"{name}.png"
        page.screenshot(path=path)
        assert path.stat().st_size < MOST_BYTES, f"{path} is too large"
        context.close()


def main() -> None:
    """Write the pictures into docs/images."""
    IMAGES.mkdir(exist_ok=True)
    with LocalUpstash() as upstash, chromium() as browser:
        os.environ.update(upstash.env)
        play(upstash)
        photograph(browser, upstash)


if __name__ == "__main__":
    main()
