"""Faults: each fault does what its name says, to whom it should, for as long as it should."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import httpx
import pytest

from upstash_middleware.local import Fault, Faults, LocalUpstash
from upstash_middleware.local.faults import FaultInjector, parse_faults, plain_faults

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = 20.0


def until(condition: Callable[[], bool]) -> None:
    """Wait for what the server does, at most PATIENCE seconds."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def ping(http: httpx.Client) -> httpx.Response:
    return http.post("/", json=["PING"], timeout=PATIENCE)


def increment(http: httpx.Client, timeout: float | httpx.Timeout = PATIENCE) -> httpx.Response:
    return http.post("/", json=["INCR", "n"], timeout=timeout)


def count(http: httpx.Client) -> object:
    return http.get("/get/n").json()["result"]


@pytest.mark.parametrize(
    ("fault", "status", "beginning"),
    [
        ("server-error", 500, '{"error":"ERR '),
        ("bad-gateway", 502, "<html>"),
        ("unauthorized", 401, '{"error":"WRONGPASS '),
        ("quota", 400, '{"error":"ERR max requests limit exceeded.'),
    ],
)
def test_an_error_is_answered_in_place_of_running_the_command(
    upstash: LocalUpstash, http: httpx.Client, fault: str, status: int, beginning: str
):
    with upstash.faults(fault=fault):
        answer = increment(http)
        assert answer.status_code == status
        assert answer.text.startswith(beginning)
    assert count(http) is None


def test_dropped_before_the_command_did_not_run(upstash: LocalUpstash, http: httpx.Client):
    with upstash.faults(fault="drop-before"), pytest.raises(httpx.TransportError):
        increment(http)
    assert count(http) is None


def test_dropped_after_the_command_did_run(upstash: LocalUpstash, http: httpx.Client):
    with upstash.faults(fault="drop-after"), pytest.raises(httpx.TransportError):
        increment(http)
    assert count(http) == "1"


def test_a_truncated_answer_is_half_there(upstash: LocalUpstash, http: httpx.Client):
    with upstash.faults(fault="truncate"), pytest.raises(httpx.RemoteProtocolError):
        increment(http)
    assert count(http) == "1"


def test_a_stalled_answer_never_ends(upstash: LocalUpstash, http: httpx.Client):
    with upstash.faults(fault="stall"), pytest.raises(httpx.ReadTimeout):
        increment(http, timeout=httpx.Timeout(PATIENCE, read=0.5))
    assert count(http) == "1"


def test_a_trickling_answer_outlives_any_timeout_of_single_reads(
    upstash: LocalUpstash, http: httpx.Client
):
    begun = time.monotonic()
    with upstash.faults(fault="trickle"):
        assert http.post("/", json=["PING"], timeout=1).json() == {"result": "PONG"}
    assert time.monotonic() - begun > 1


def test_refused_is_refused_until_the_fault_is_removed(upstash: LocalUpstash, http: httpx.Client):
    ping(http)
    with upstash.faults(fault="refuse"):
        for _ in range(2):
            with pytest.raises(httpx.ConnectError, match="refused"):
                ping(http)
    assert ping(http).is_success


def test_forgotten_scripts_are_not_there(upstash: LocalUpstash, http: httpx.Client):
    sha = http.post("/", json=["SCRIPT", "LOAD", "return 7"]).json()["result"]
    with upstash.faults(fault="noscript", times=1):
        answer = http.post("/", json=["EVALSHA", sha, 0])
        assert answer.json() == {"error": "NOSCRIPT No matching script. Please use EVAL."}
        http.post("/", json=["SCRIPT", "LOAD", "return 7"])
        assert http.post("/", json=["EVALSHA", sha, 0]).json() == {"result": 7}


def test_latency_holds_back_every_answer(upstash_faults: Callable[..., None], http: httpx.Client):
    upstash_faults(latency_ms=120)
    begun = time.monotonic()
    ping(http)
    assert time.monotonic() - begun >= 0.12


def test_the_fixture_is_over_with_its_test(upstash: LocalUpstash, http: httpx.Client):
    assert ping(http).is_success


def test_a_fault_hits_as_often_as_it_should(upstash: LocalUpstash, http: httpx.Client):
    with upstash.faults(fault="server-error", times=2):
        assert [ping(http).status_code for _ in range(4)] == [500, 500, 200, 200]


def test_faults_inside_faults_end_with_their_own_block(upstash: LocalUpstash, http: httpx.Client):
    with upstash.faults(fault="unauthorized"):
        with upstash.faults(fault="quota"):
            assert ping(http).status_code == 400
        assert ping(http).status_code == 401
    assert ping(http).status_code == 200


def test_probability_is_the_share_that_is_hit():
    injector = FaultInjector(Faults(fault=Fault.QUOTA, probability=0.25))
    hits = sum(injector.for_next_request()[1] is Fault.QUOTA for _ in range(4000))
    assert 800 < hits < 1200
    injector.change(Faults(fault=Fault.QUOTA, probability=0))
    assert injector.for_next_request() == (0.0, None)


def test_jitter_adds_up_to_its_size():
    injector = FaultInjector(Faults(latency_ms=100, jitter_ms=50))
    late = [injector.for_next_request()[0] for _ in range(1000)]
    assert min(late) >= 0.1
    assert 0.14 < max(late) <= 0.15


def test_faults_with_seconds_are_over_after_them():
    now = [0.0]
    injector = FaultInjector(Faults(latency_ms=1, seconds=10), clock=lambda: now[0])
    now[0] = 9.9
    assert injector.for_next_request()[0] == 0.001
    now[0] = 10.0
    assert injector.for_next_request() == (0.0, None)
    assert injector.current == Faults()


def test_the_faults_are_changed_over_their_own_address(upstash: LocalUpstash, http: httpx.Client):
    address = f"{upstash.url}/-/faults"
    assert httpx.get(address).json() == plain_faults(Faults())
    set_to = {"fault": "quota", "times": 1}
    assert httpx.put(address, json=set_to).json() == plain_faults(Faults()) | set_to
    assert [ping(http).status_code for _ in range(2)] == [400, 200]
    httpx.put(address, json={"fault": "quota"})
    assert httpx.delete(address).json()["fault"] is None
    assert ping(http).is_success


def test_refusing_over_http_ends_by_itself(upstash: LocalUpstash, http: httpx.Client):
    address = f"{upstash.url}/-/faults"
    refusal = httpx.put(address, json={"fault": "refuse"})
    assert refusal.status_code == 400
    assert "seconds" in refusal.json()["error"]
    assert httpx.put(address, json={"fault": "refuse", "seconds": 2}).is_success

    def refused() -> bool:
        try:
            return not ping(http).is_success
        except httpx.TransportError:
            return True

    until(refused)
    until(lambda: not refused())


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"fault": "rain"}, "'rain'"),
        ({"fault": 5}, "fault"),
        ({"wind": 5}, "'wind'"),
        ({"latency_ms": -1}, "latency_ms"),
        ({"jitter_ms": "much"}, "jitter_ms"),
        ({"probability": 2}, "probability"),
        ({"times": True}, "times"),
        ({"fault": "refuse", "times": 1}, "refuse"),
        ([], "object"),
    ],
)
def test_faults_that_cannot_be_are_refused_by_name(
    upstash: LocalUpstash, settings: object, named: str
):
    with pytest.raises(ValueError, match=named):
        parse_faults(settings)
    answer = httpx.put(f"{upstash.url}/-/faults", json=settings)
    assert answer.status_code == 400
    assert named in answer.json()["error"]


def test_the_bill_and_other_own_addresses_work_under_any_fault(upstash: LocalUpstash):
    with upstash.faults(fault="server-error"):
        assert httpx.get(f"{upstash.url}/-/bill").json()["requests"] == 0
        assert httpx.post(f"{upstash.url}/-/flush").json() == {"result": "OK"}
        lost = httpx.get(f"{upstash.url}/-/nowhere")
        assert lost.status_code == 404
        assert "GET /-/bill" in lost.json()["error"]


def test_no_web_page_can_use_the_own_addresses(upstash: LocalUpstash, http: httpx.Client):
    http.get("/set/k/v")
    headers = {"Origin": "https://example.com"}
    answer = httpx.post(f"{upstash.url}/-/flush", headers=headers)
    assert answer.status_code == 403
    assert http.get("/get/k", headers=headers).json() == {"result": "v"}


def test_a_late_command_is_run_though_its_client_has_given_up(
    upstash: LocalUpstash, http: httpx.Client
):
    with upstash.faults(latency_ms=1000), pytest.raises(httpx.ReadTimeout):
        http.post("/", json=["INCR", "n"], timeout=httpx.Timeout(PATIENCE, read=0.1))
    until(lambda: count(http) == "1")
    assert upstash.bill().by_command["INCR"] == 1


def test_a_late_command_is_not_run_after_the_database_was_emptied(
    upstash: LocalUpstash, http: httpx.Client
):
    with upstash.faults(latency_ms=1000), pytest.raises(httpx.ReadTimeout):
        http.post("/", json=["INCR", "n"], timeout=httpx.Timeout(PATIENCE, read=0.1))
    until(lambda: upstash.bill().requests == 1)
    upstash.flush()
    time.sleep(1.1)
    assert count(http) is None


def test_requests_are_counted_under_any_fault(upstash: LocalUpstash, http: httpx.Client):
    with upstash.faults(fault="server-error"):
        ping(http)
        increment(http)
    assert (upstash.bill().requests, upstash.bill().commands) == (2, 0)
