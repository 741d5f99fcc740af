"""Threads, several event loops, trio, cancellation, forks, and what importing costs."""

from __future__ import annotations

import asyncio
import gc
import importlib.metadata
import logging
import os
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import anyio
import pytest

from tests.upstash.raw_server import answer, raw_server, silent
from tests.upstash.support import executing, pipeline
from upstash_middleware.errors import NotConnected
from upstash_middleware.upstash import AsyncClient, Client, Credentials, Response, transport
from upstash_middleware.upstash.client import open_transport

GET = ("GET", "k")
ONE = answer(b":1\r\n")


@pytest.fixture(params=["sockets", "httpx"])
def library(request):
    return request.param


@pytest.fixture
def credentials(upstash):
    return Credentials(upstash.url, upstash.token)


def test_threads_share_one_client_and_each_gets_its_own_replies(credentials, library):
    client = Client(credentials, transport=library, deadline=20.0)

    def echo(number):
        word = f"{number}".encode()
        return client.execute(pipeline(("ECHO", word), ("INCR", "n")))[0] == word

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(echo, range(200)))
    assert client.execute(pipeline(("GET", "n"))) == [b"200"]
    client.close()


def test_tasks_share_one_client_and_each_gets_its_own_replies(credentials, library):
    client = AsyncClient(credentials, transport=library, deadline=20.0)

    async def echo(number):
        word = f"{number}".encode()
        return (await client.execute(pipeline(("ECHO", word), ("INCR", "n"))))[0] == word

    async def main():
        assert all(await asyncio.gather(*map(echo, range(200))))
        await client.aclose()

    asyncio.run(main())


def test_one_async_client_serves_several_event_loops_at_once_and_in_turn(credentials, library):
    client = AsyncClient(credentials, transport=library, deadline=20.0)
    together = threading.Barrier(3)

    async def main():
        await anyio.to_thread.run_sync(together.wait)
        for _ in range(20):
            assert await client.execute(pipeline(("ECHO", b"x"))) == [b"x"]
        await anyio.to_thread.run_sync(together.wait)
        await client.aclose()
        await asyncio.sleep(0.1)

    with ThreadPoolExecutor(3) as threads:
        for loop in [threads.submit(asyncio.run, main()) for _ in range(3)]:
            loop.result()

    async def once():
        reply = await client.execute(pipeline(("ECHO", b"y")))
        await client.aclose()
        return reply

    assert [asyncio.run(once()) for _ in range(3)] == [[b"y"]] * 3


def test_under_trio_calls_go_over_httpx(credentials):
    client = AsyncClient(credentials, deadline=20.0)

    async def main():
        replies = await client.execute(pipeline(("ECHO", b"x")))
        await client.aclose()
        return replies

    assert anyio.run(main, backend="trio") == [b"x"]
    assert asyncio.run(main()) == [b"x"]


class Counted:
    """A transport that counts its calls and knows whether it was closed."""

    def __init__(self, _credentials):
        self.calls = 0
        self.closed = False

    async def send(self, call, seconds):
        self.calls += 1
        return Response(200, "application/octet-stream", b":1\r\n")

    async def aclose(self):
        self.closed = True


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_closing_a_client_closes_the_transport_of_its_calls(backend):
    made: list[Counted] = []

    def transport(credentials):
        made.append(Counted(credentials))
        return made[-1]

    client = AsyncClient(Credentials("https://db.example", "token"), transport=transport)

    async def main():
        assert await client.execute(pipeline(GET)) == [1]
        await client.aclose()

    anyio.run(main, backend=backend)
    assert [(each.calls, each.closed) for each in made if each.calls] == [(1, True)]


def test_calls_need_no_trio_where_its_import_is_blocked(credentials, monkeypatch):
    """By None in ``sys.modules``, as tests and bundlers do it."""
    monkeypatch.setitem(sys.modules, "trio", None)
    client = AsyncClient(credentials, deadline=20.0)

    async def main():
        replies = await client.execute(pipeline(("ECHO", b"x")))
        replies += await client.execute_transaction(pipeline(("ECHO", b"y")))
        await client.aclose()
        return replies

    assert asyncio.run(main()) == [b"x", b"y"]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_client_over_httpx_that_nobody_closes_ends_with_its_event_loop(credentials, backend):
    """Else each of its sockets would be reported as unclosed."""
    client = AsyncClient(credentials, deadline=20.0, transport="httpx")

    async def main():
        return await client.execute(pipeline(("ECHO", b"x")))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert [anyio.run(main, backend=backend) for _ in range(2)] == [[b"x"]] * 2
        gc.collect()
    assert [str(each.message) for each in caught] == []


def test_a_cancelled_call_ends_at_once_and_the_client_goes_on(library):
    with raw_server(silent, ONE) as server:
        client = AsyncClient(Credentials(server.url, "token"), transport=library)

        async def main():
            with anyio.fail_after(20):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(client.execute, pipeline(GET, deadline=60.0))
                    await anyio.to_thread.run_sync(server.wait_for_requests, 1)
                    tasks.cancel_scope.cancel()
            assert await client.execute(pipeline(GET, deadline=20.0)) == [1]
            await client.aclose()

        asyncio.run(main())


def test_a_late_pipeline_does_not_hold_up_another(library):
    with raw_server(silent, ONE) as server:
        client = AsyncClient(Credentials(server.url, "token"), transport=library)

        async def main():
            late = asyncio.create_task(client.execute(pipeline(GET, deadline=60.0)))
            await anyio.to_thread.run_sync(server.wait_for_requests, 1)
            assert await client.execute(pipeline(GET, deadline=20.0)) == [1]
            assert not late.done()
            late.cancel()
            await asyncio.wait([late])
            await client.aclose()

        asyncio.run(main())


def test_a_closed_client_opens_anew_at_the_next_call(credentials, library):
    client = Client(credentials, transport=library)
    for _ in range(2):
        assert client.execute(pipeline(("ECHO", b"x"))) == [b"x"]
        client.close()
    client.close()


def test_nothing_is_opened_before_the_first_call():
    opened = []

    class Counted:
        def __init__(self, credentials):
            opened.append(credentials.url)

        def send(self, call, seconds):
            return Response(200, "application/octet-stream", b":1\r\n")

        def close(self):
            opened.clear()

    client = Client(Credentials("https://host.example", "token"), transport=Counted)
    assert opened == []
    assert client.execute(pipeline(GET)) == client.execute(pipeline(GET)) == [1]
    assert opened == ["https://host.example"]
    client.close()
    assert opened == []


FORKING = """
import asyncio, os, sys
from tests.upstash.support import pipeline
from upstash_middleware.upstash import AsyncClient, Client, Credentials

credentials = Credentials(sys.argv[1], sys.argv[2])
library = None if sys.argv[3] == "best" else sys.argv[3]
client = Client(credentials, deadline=20.0, transport=library)
async_client = AsyncClient(credentials, deadline=20.0, transport=library)

async def use_async():
    assert await async_client.execute(pipeline(("INCR", "async"))) != []
    await async_client.aclose()

def use():
    assert client.execute(pipeline(("INCR", "sync"))) != []
    asyncio.run(use_async())

if "parent uses" in sys.argv[4]:
    use()
child = os.fork()
if child == 0:
    use()
    use()
    client.close()
    sys.stdout.flush()
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
use()
client.close()
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("which", ["best", "httpx"])
@pytest.mark.parametrize(("when", "calls"), [("parent uses first", 4), ("child uses first", 3)])
def test_parent_and_child_of_a_fork_both_work(upstash, which, when, calls):
    done = subprocess.run(
        [sys.executable, "-c", FORKING, upstash.url, upstash.token, which, when],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    client = Client(Credentials(upstash.url, upstash.token), deadline=20.0)
    assert client.execute(pipeline(("MGET", "sync", "async"))) == [[b"%d" % calls] * 2]
    client.close()
    assert done.stderr == ""


FORKING_IN_C = """
import ctypes, os, sys, types
sys.modules["uwsgi"] = types.ModuleType("uwsgi")
from tests.upstash.support import pipeline
from upstash_middleware.upstash import Client, Credentials

client = Client(Credentials(sys.argv[1], sys.argv[2]), deadline=20.0)

def use(name):
    return [client.execute(pipeline(("INCR", name))) for _ in range(200)]

use("before")
child = ctypes.CDLL(None).fork()  # Python runs nothing that is registered for forks
counted = use("parent" if child else "child") == [[n] for n in range(1, 201)]
if child == 0:
    os._exit(0 if counted else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert counted
client.close()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="uWSGI's way to fork")
def test_workers_that_uwsgi_forks_share_no_connection(upstash):
    done = subprocess.run(
        [sys.executable, "-c", FORKING_IN_C, upstash.url, upstash.token],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_importing_loads_no_http_library():
    code = "import sys, upstash_middleware.upstash; print(*sys.modules)"
    unmeasured = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=unmeasured
    )
    assert not set(done.stdout.split()) & {"httpx", "httpcore", "socket", "ssl", "upstash_redis"}


@pytest.mark.parametrize(("which", "options"), [("best", ["-X", "dev"]), ("httpx", [])])
def test_a_process_that_never_closes_its_clients_ends_and_says_nothing(upstash, which, options):
    code = FORKING.split('if "parent', maxsplit=1)[0] + "use()"
    done = subprocess.run(
        [sys.executable, *options, "-c", code, upstash.url, upstash.token, which],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_version_that_calls_name_is_the_distributions():
    assert importlib.metadata.version("upstash-middleware") == transport.VERSION


def test_a_token_that_goes_out_unencrypted_is_said_once(caplog):
    transport.warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, "upstash_middleware"):
        for url in ("https://db.example", "http://localhost:1", "http://db.example") * 2:
            transport.common_headers(Credentials(url, "t0ken"))
    assert [record.message for record in caplog.records] == [
        "the REST token is sent to db.example unencrypted: its URL is http://"
    ]


BEHIND_A_PROXY = """
import sys
from tests.upstash.support import executing, pipeline
from upstash_middleware.upstash import Credentials

library = None if sys.argv[2] == "best" else sys.argv[2]
for _ in range(2):
    with executing(sys.argv[3], Credentials(sys.argv[1], "token"), library) as execute:
        print(execute(pipeline(("GET", "k"))), end=" ")
"""


@pytest.mark.parametrize("which", ["best", "httpx"])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_the_environments_proxy_is_used_but_not_for_this_machine(which, kind):
    """The package's own wire knows none, so httpx takes its place, which is said once."""
    with raw_server(answer(b":1\r\n")) as proxy, raw_server(answer(b":2\r\n")) as server:
        for url, reply in (("http://db.example", "[1] [1]"), (server.url, "[2] [2]")):
            done = subprocess.run(
                [sys.executable, "-c", BEHIND_A_PROXY, url, which, kind],
                env=os.environ
                | dict.fromkeys(("HTTP_PROXY", "http_proxy"), proxy.url)
                | dict.fromkeys(("NO_PROXY", "no_proxy"), ""),
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert done.stdout.strip() == reply, done.stderr
            over_httpx = which == "best" and url != server.url
            assert done.stderr.count("a proxy is set, so calls to Upstash go over") == over_httpx
        assert proxy.requests[0][0].startswith(b"POST http://db.example/ HTTP/1.1")


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"HTTP_PROXY": "ftp://proxy.example"}, "Unknown scheme"),
        ({"HTTP_PROXY": "http://proxy.example", "NO_PROXY": "localhost,[::1]"}, "Invalid port"),
    ],
)
def test_proxies_that_httpx_cannot_use_are_named_in_the_error(monkeypatch, kind, variables, said):
    for name in ("HTTP_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name.lower(), raising=False)
        monkeypatch.setenv(name, variables.get(name, ""))
    with (
        executing(kind, Credentials("http://db.example", "token"), "httpx") as execute,
        pytest.raises(NotConnected, match=f"the environment sets .* {said}"),
    ):
        execute(pipeline(("GET", "k")))


@pytest.mark.parametrize(
    ("variables", "library"),
    [
        ({}, "sockets"),
        ({"https_proxy": "http://proxy.example:3128"}, "httpx"),
        ({"HTTPS_PROXY": "http://proxy.example:3128"}, "httpx"),
        ({"ALL_PROXY": "http://proxy.example:3128"}, "httpx"),
        ({"HTTP_PROXY": "http://proxy.example:3128"}, "sockets"),
        ({"HTTPS_PROXY": ""}, "sockets"),
        ({"HTTPS_PROXY": "http://proxy.example:3128", "NO_PROXY": "*"}, "sockets"),
        ({"HTTPS_PROXY": "http://proxy.example:3128", "NO_PROXY": "upstash.io"}, "sockets"),
        ({"HTTPS_PROXY": "http://proxy.example:3128", "NO_PROXY": "other.example"}, "httpx"),
        ({"NO_PROXY": "other.example"}, "sockets"),
    ],
)
@pytest.mark.skipif(sys.platform in {"darwin", "win32"}, reason="a proxy may be set elsewhere too")
def test_a_proxy_that_is_for_the_url_has_calls_go_over_httpx(monkeypatch, variables, library):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name, text in variables.items():
        monkeypatch.setenv(name, text)
    credentials = Credentials("https://db.upstash.io", "token")
    opened = open_transport(credentials, None, "AsyncClient")
    assert library in type(opened).__module__.rpartition(".")[2]
    by_name = open_transport(credentials, "sockets", "AsyncClient")
    assert type(by_name).__module__.endswith(".sockets")
