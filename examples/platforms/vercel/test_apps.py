"""On Vercel all is done before the invocation ends, and the client is who Vercel says it is."""

from __future__ import annotations

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import pytest

from examples.platforms.vercel import runtime
from tests.patience import ONE_AUTHORITY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from upstash_middleware.local import LocalUpstash

HERE = Path(__file__).parent
CLIENT = "203.0.113.7"
VARIABLES = {"VERCEL": "1", "VERCEL_ENV": "production", "VERCEL_REGION": "fra1"}
APPLICATIONS = {"asgi": HERE, "wsgi": HERE.with_name("vercel_flask")}


class Deployed(NamedTuple):
    """A deployment, and how much had been written to Upstash when each invocation ended."""

    url: str
    written: SimpleQueue[int]

    def get(self, path: str, spoofed: str = "") -> httpx.Response:
        """Ask through Vercel's front, which replaces what a client says of itself."""
        fields = {"X-Forwarded-For": spoofed, "X-Real-IP": spoofed} if spoofed else {}
        fields |= {
            "Host": "shop.vercel.app",
            "X-Forwarded-For": CLIENT,
            "X-Forwarded-Host": "shop.vercel.app",
            "X-Forwarded-Proto": "https",
            "X-Real-IP": CLIENT,
            "X-Vercel-Forwarded-For": CLIENT,
            "X-Vercel-Id": "fra1::fra1::8x9kz-1773342238000-0123456789ab",
        }
        if spoofed:
            fields |= {"Forwarded": f"for={spoofed}", "CF-Connecting-IP": spoofed}
        url = self.url + path
        return httpx.get(url, headers=fields, timeout=30, trust_env=False, verify=ONE_AUTHORITY)


@pytest.fixture(params=APPLICATIONS)
def deployed(request: pytest.FixtureRequest, upstash: LocalUpstash) -> Iterator[Deployed]:
    """Each application under its runtime."""
    written: SimpleQueue[int] = SimpleQueue()

    def ended() -> None:
        written.put(upstash.bill().by_command.get("SET", 0))

    with pytest.MonkeyPatch.context() as patch:
        for name, value in VARIABLES.items():
            patch.setenv(name, value)
        app = loaded(APPLICATIONS[request.param] / "api" / "index.py")
        if request.param == "asgi":  # it makes its middleware at the first request
            app.middleware_stack = app.build_middleware_stack()
    with getattr(runtime, request.param)(app, ended) as url:
        yield Deployed(url, written)


def loaded(path: Path) -> Any:
    """Import an entry point as the runtime does, by its file, and return its ``app``."""
    spec = spec_from_file_location("vc_entrypoint", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.app


def test_the_client_is_whom_vercel_names_whatever_it_says_itself(deployed: Deployed) -> None:
    said = ["", "1.2.3.4", "5.6.7.8", "unknown"]
    answers = [deployed.get("/limited", spoofed) for spoofed in said]
    assert {each.json()["identifier"] for each in answers} == {f"ip={CLIENT}"}


def test_the_eleventh_request_of_a_minute_is_denied(deployed: Deployed) -> None:
    statuses = [deployed.get("/limited", f"10.0.0.{n}").status_code for n in range(11)]
    assert statuses == [200] * 10 + [429]


def test_what_was_rendered_is_stored_before_the_invocation_ends(deployed: Deployed) -> None:
    first = deployed.get("/page")
    assert deployed.written.get(timeout=30) == 2, "the counter's and the page's"
    second = deployed.get("/page")
    assert second.json() == first.json() == {"render": 1}
    assert "; hit" in second.headers["cache-status"]


@pytest.mark.parametrize("folder", APPLICATIONS.values(), ids=APPLICATIONS)
def test_every_path_is_sent_to_the_entry_point(folder: Path) -> None:
    (rewrite,) = json.loads((folder / "vercel.json").read_text())["rewrites"]
    assert rewrite["source"] == "/(.*)"
    assert (folder / rewrite["destination"].lstrip("/")).with_suffix(".py").exists()
