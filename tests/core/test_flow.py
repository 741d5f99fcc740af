"""Flows, what they await, and how several of them share one pipeline."""

from __future__ import annotations

import pytest

from upstash_middleware.core.flow import Command, Latch, Pipeline, Sleep, call, together
from upstash_middleware.drivers import run
from upstash_middleware.errors import CommandError, NotConnected


class Scripted:
    """A client that records pipelines and answers each command with its own words."""

    def __init__(self, fail: Exception | None = None) -> None:
        self.calls: list[list[tuple[object, ...]]] = []
        self.deadlines: list[float | None] = []
        self._fail = fail

    def execute(self, pipeline: Pipeline):
        self.calls.append([command.args for command in pipeline.commands])
        self.deadlines.append(pipeline.deadline)
        if self._fail:
            raise self._fail
        return [
            CommandError("ERR no")
            if command.args[0] == "FAIL"
            else b" ".join(map(_bytes, command.args))
            for command in pipeline.commands
        ]


def _bytes(word: object) -> bytes:
    return str(word).encode()


async def ask(*words: str):
    return await Command(words)


async def ask_twice(first: str, second: str):
    return [await Command((first,)), await Command((second,))]


def test_an_awaited_command_gives_its_reply():
    assert run(ask("GET", "k"), Scripted()) == b"GET k"


def test_an_awaited_command_that_failed_raises_and_in_a_pipeline_it_is_a_value():
    with pytest.raises(CommandError, match="ERR no"):
        run(ask("FAIL"), Scripted())

    async def pipeline():
        return await Pipeline((Command(("FAIL",)), Command(("GET", "k"))))

    failed, value = run(pipeline(), Scripted())
    assert isinstance(failed, CommandError)
    assert value == b"GET k"


def test_flows_that_run_together_share_a_pipeline_each_turn():
    client = Scripted()
    results = run(together(ask("A"), ask_twice("B", "C"), ask("D")), client)
    assert results == [b"A", [b"B", b"C"], b"D"]
    assert client.calls == [[("A",), ("B",), ("D",)], [("C",)]]


def test_bytes_that_are_no_text_travel_by_themselves_after_what_can_be_joined():
    client = Scripted()

    async def store(value: bytes):
        return await Command(("SET", value))

    flows = (store(b"\xff"), ask("A"), store(b"text"), store(b"\xfe"))
    assert run(together(*flows), client) == [b"SET b'\\xff'", b"A", b"SET b'text'", b"SET b'\\xfe'"]
    assert client.calls == [
        [("A",), ("SET", b"text")],
        [("SET", b"\xff")],
        [("SET", b"\xfe")],
    ]
    client.calls.clear()
    run(together(store(b"\xff"), store(b"\xfe")), client)
    assert client.calls == [[("SET", b"\xff")], [("SET", b"\xfe")]]


def test_a_joined_pipeline_has_the_longest_deadline_of_those_joined():
    async def with_deadline(seconds: float | None):
        await Pipeline((Command(("GET", "k")),), deadline=seconds)

    client = Scripted()
    run(together(with_deadline(0.25), with_deadline(1.0)), client)
    run(together(with_deadline(0.25), with_deadline(None)), client)
    assert client.deadlines == [1.0, None]


def test_a_deadline_that_yields_counts_only_where_nothing_else_travels_along():
    async def with_deadline(seconds: float, *, yields: bool):
        await Pipeline((Command(("GET", "k")),), seconds, yields)

    client = Scripted()
    run(together(with_deadline(0.1, yields=False), with_deadline(0.25, yields=True)), client)
    run(together(with_deadline(0.1, yields=True), with_deadline(0.25, yields=True)), client)
    assert client.deadlines == [0.1, 0.25]


def test_an_error_of_the_joined_call_reaches_every_flow_where_it_waits():
    async def settled(word: str):
        try:
            return await Command((word,))
        except NotConnected:
            return f"{word} without Upstash"

    client = Scripted(fail=NotConnected("refused"))
    assert run(together(settled("A"), settled("B")), client) == [
        "A without Upstash",
        "B without Upstash",
    ]


def test_a_flow_that_raises_closes_the_others():
    closed = []

    async def patient():
        try:
            await ask_twice("A", "B")
        finally:
            closed.append(True)

    async def broken():
        await Command(("C",))
        raise LookupError

    with pytest.raises(LookupError):
        run(together(patient(), broken()), Scripted())
    assert closed == [True]


def test_what_is_not_the_wires_is_performed_for_a_flow_that_runs_with_others():
    async def sleepy():
        await Sleep(0)
        return await Command(("A",))

    client = Scripted()
    assert run(together(sleepy(), ask("B")), client) == [b"A", b"B"]
    assert client.calls == [[("A",), ("B",)]]


def test_a_function_of_the_users_may_be_sync_or_async():
    async def plain():
        return await call(lambda x: x + 1, 1)

    async def slow(x: int) -> int:
        return x + 1

    async def awaited():
        return await call(slow, 1)

    assert run(plain(), Scripted()) == 2
    assert run(awaited(), Scripted()) == 2


def test_a_latch_that_is_open_wakes_whoever_subscribes_later():
    latch, woken = Latch(), []
    latch.subscribe(lambda: woken.append("early"))
    latch.open()
    latch.subscribe(lambda: woken.append("late"))
    assert woken == ["early", "late"]
