"""Both drivers perform every effect alike, and errors land where the flow waits."""

from __future__ import annotations

import threading
import time

import anyio
import anyio.lowlevel
import pytest

from upstash_middleware.core.flow import Command, Latch, Notify, Pipeline, Resolve, Sleep, Wait
from upstash_middleware.drivers import arun, run
from upstash_middleware.errors import DeadlineExceeded


class Echo:
    def execute(self, pipeline: Pipeline):
        return [command.args[-1] for command in pipeline.commands]


class AsyncEcho:
    async def execute(self, pipeline: Pipeline):
        await anyio.lowlevel.checkpoint()
        return [command.args[-1] for command in pipeline.commands]


class Silent:
    def execute(self, pipeline: Pipeline):
        raise DeadlineExceeded("1 s")


def in_thread(flow):
    return run(flow, Echo())


def on_asyncio(flow):
    return anyio.run(arun, flow, AsyncEcho(), backend="asyncio")


@pytest.fixture(params=[in_thread, on_asyncio], ids=["run", "arun"])
def drive(request):
    return request.param


def test_a_flow_gets_replies_pauses_and_the_users_results(drive):
    async def users():
        await anyio.lowlevel.checkpoint()
        return "theirs"

    async def flow():
        await Sleep(0.001)
        return await Command(("ECHO", "hi")), await Resolve(users())

    assert drive(flow()) == ("hi", "theirs")


def test_waiting_for_a_latch_tells_whether_it_opened(drive):
    open_latch, shut_latch = Latch(), Latch()

    async def flow():
        await Notify(open_latch)
        return await Wait(open_latch, 10), await Wait(shut_latch, 0.01)

    assert drive(flow()) == (True, False)


def test_a_latch_opened_in_another_thread_wakes_the_waiting_flow(drive):
    latch = Latch()
    opener = threading.Timer(0.05, latch.open)
    opener.start()

    async def flow():
        return await Wait(latch, 30)

    began = time.monotonic()
    assert drive(flow()) is True
    assert time.monotonic() - began < 15
    opener.join()


def test_an_error_is_raised_where_the_flow_awaits():
    async def flow():
        try:
            await Command(("GET", "k"))
        except DeadlineExceeded as error:
            return f"settled: {error}"

    assert run(flow(), Silent()) == "settled: 1 s"


def test_a_cancelled_task_leaves_its_flow_through_its_finally():
    left = []

    async def flow():
        try:
            await Sleep(30)
        finally:
            left.append(True)

    async def main():
        with anyio.move_on_after(0.02):
            await arun(flow(), AsyncEcho())

    anyio.run(main)
    assert left == [True]
