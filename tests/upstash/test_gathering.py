"""Coalescing: what shares a call, and that a shared call takes nothing from a pipeline.

The transport is the test's: a call is under way until the test answers it.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from weakref import ref

import pytest

from tests.upstash.support import pipeline
from upstash_middleware.core.flow import Command, Script
from upstash_middleware.errors import (
    CommandError,
    ConnectionLost,
    DeadlineExceeded,
    NotConnected,
    Refused,
    UnexpectedAnswer,
    UpstashError,
)
from upstash_middleware.upstash import (
    AsyncClient,
    Breaker,
    Credentials,
    OnePerProcess,
    Response,
    client,
)
from upstash_middleware.upstash.batching import (
    ALONE_BYTES,
    MAX_BYTES,
    MAX_COMMANDS,
    MAX_REPLY_BYTES,
    PATIENCE_SECONDS,
    SECONDS_BETWEEN_CALLS,
)

TEXT = "return 1"
SCRIPT = Script(TEXT, hashlib.sha1(TEXT.encode()).hexdigest())


class Wire:
    """An AsyncTransport whose calls are answered by the test, each echoing its commands."""

    def __init__(self, credentials):
        self.calls = []
        self.ends = []

    async def send(self, call, seconds, loop=None):
        self.calls.append(call)
        self.ends.append(asyncio.get_running_loop().create_future())
        return await self.ends[-1]

    async def aclose(self):
        pass

    def commands(self, index):
        """Return the commands of a call."""
        call = self.calls[index]
        words = json.loads(call.body)
        return words if call.path == "/pipeline" else [words]

    def answer(self, index, *replies):
        """Response a call: with these RESP2 replies, or with the last word of each command."""
        echoed = [f"+{words[-1]}\r\n".encode() for words in self.commands(index)]
        body = b"".join(replies or echoed)
        self.ends[index].set_result(Response(200, "application/octet-stream", body))

    def fail(self, index, error):
        self.ends[index].set_exception(error)


CLOCK = SimpleNamespace(now=0.0)


class World:
    """A client over a Wire, and what a test does with it."""

    def __init__(self, **options):
        self.wire = Wire(None)
        credentials = Credentials("https://db.example", "s3cret")
        self.client = AsyncClient(
            credentials, deadline=60.0, transport=lambda _: self.wire, **options
        )

    def begin(self, *commands, **options):
        """Begin to execute commands and let the event loop take them up."""
        return asyncio.ensure_future(self.client.execute(pipeline(*commands, **options)))

    async def after(self, seconds):
        """Let so much time pass, once everything has begun that can."""
        await turn()
        CLOCK.now += seconds
        await turn()

    def forget(self):
        """Forget the calls, which refer to the event loop."""
        self.wire.calls.clear()
        self.wire.ends.clear()

    async def busy(self, before=0):
        """Put two calls under way, after so many, and return their tasks."""
        tasks = [self.begin(("ECHO", "a")), self.begin(("ECHO", "b"))]
        await turn()
        assert len(self.wire.calls) == before + 2
        return tasks


@pytest.fixture(autouse=True)
def _stopped_clock(monkeypatch):
    """Have the event loop and the client read a clock that only a test moves."""
    CLOCK.now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: CLOCK.now)


async def turn():
    """Let everything that can go on go on."""
    for _ in range(10):
        await asyncio.sleep(0)


def playing(play):
    """Run an async test with a World, and see that no task is left behind."""

    def test():
        async def main():
            world = World()
            await asyncio.wait_for(play(world), 30)
            await turn()
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left

        asyncio.run(main())

    test.__name__, test.__doc__ = play.__name__, play.__doc__
    return test


@playing
async def test_pipelines_that_meet_share_the_next_call_and_each_gets_its_own_replies(world):
    first, second = await world.busy()
    gathered = [
        world.begin(("ECHO", "c")),
        world.begin(("ECHO", "d"), ("ECHO", "e")),
        world.begin(("ECHO", "f")),
    ]
    await turn()
    assert len(world.wire.calls) == 2
    world.wire.answer(0)
    await turn()
    assert [words[-1] for words in world.wire.commands(2)] == ["c", "d", "e", "f"]
    world.wire.answer(2)
    world.wire.answer(1)
    assert await asyncio.gather(first, second, *gathered) == [
        [b"a"],
        [b"b"],
        [b"c"],
        [b"d", b"e"],
        [b"f"],
    ]


@playing
async def test_a_pipeline_that_meets_nothing_goes_at_once_as_it_is(world):
    for number in range(3):
        task = world.begin(("ECHO", f"{number}"))
        await turn()
        assert world.wire.calls[-1].path == "/"
        world.wire.answer(number)
        assert await task == [f"{number}".encode()]


@playing
async def test_a_cancelled_pipeline_that_waits_is_never_sent(world):
    tasks = await world.busy()
    gone, stays = world.begin(("ECHO", "gone")), world.begin(("ECHO", "stays"))
    await turn()
    gone.cancel()
    await turn()
    world.wire.answer(0)
    await turn()
    assert world.wire.commands(2) == [["ECHO", "stays"]]
    world.wire.answer(2)
    world.wire.answer(1)
    assert await stays == [b"stays"]
    assert gone.cancelled()
    await asyncio.gather(*tasks)


@playing
async def test_a_cancelled_pipeline_of_a_shared_call_takes_nothing_from_the_others(world):
    tasks = await world.busy()
    gone, stays = world.begin(("ECHO", "gone")), world.begin(("ECHO", "stays"))
    await turn()
    world.wire.answer(0)
    await turn()
    gone.cancel()
    await turn()
    world.wire.answer(2)
    world.wire.answer(1)
    assert await stays == [b"stays"]
    await asyncio.gather(*tasks)


@playing
async def test_a_cancelled_pipeline_with_a_call_of_its_own_lets_the_waiting_go_on(world):
    first, second = await world.busy()
    waiting = world.begin(("ECHO", "c"))
    await turn()
    first.cancel()
    await turn()
    world.wire.answer(2)
    assert await waiting == [b"c"]
    world.wire.answer(1)
    await second


@playing
async def test_a_short_deadline_ends_its_own_pipeline_only(world):
    tasks = await world.busy()
    short = world.begin(("ECHO", "short"), deadline=0.1)
    long = world.begin(("ECHO", "long"), deadline=20.0)
    await turn()
    world.wire.answer(0)
    await turn()
    await world.after(0.2)
    with pytest.raises(DeadlineExceeded, match=r"0\.1 s"):
        await short
    assert not long.done()
    world.wire.answer(2)
    world.wire.answer(1)
    assert await long == [b"long"]
    await asyncio.gather(*tasks)


@playing
async def test_what_waits_for_calls_that_do_not_end_goes_all_the_same(world):
    tasks = await world.busy()
    patient = [world.begin(("ECHO", "c")), world.begin(("ECHO", "d"))]
    await turn()
    assert len(world.wire.calls) == 2
    await world.after(PATIENCE_SECONDS * 1.5)
    assert world.wire.commands(2) == [["ECHO", "c"], ["ECHO", "d"]]
    world.wire.answer(2)
    assert await asyncio.gather(*patient) == [[b"c"], [b"d"]]
    world.wire.answer(0)
    world.wire.answer(1)
    await asyncio.gather(*tasks)


@playing
async def test_what_has_not_waited_for_long_goes_on_waiting_when_others_have(world):
    """Here the first fills the call that is made for it."""
    tasks = await world.busy()
    full = world.begin(*[("ECHO", "x")] * MAX_COMMANDS)
    await world.after(PATIENCE_SECONDS * 0.8)
    late = world.begin(("ECHO", "late"))
    await world.after(PATIENCE_SECONDS * 0.4)
    assert len(world.wire.commands(2)) == MAX_COMMANDS
    assert len(world.wire.calls) == 3
    await world.after(PATIENCE_SECONDS * 1.5)
    assert world.wire.commands(3) == [["ECHO", "late"]]
    for index in range(4):
        world.wire.answer(index)
    await asyncio.gather(*tasks, full, late)


@playing
async def test_a_call_that_was_sent_lately_is_none_that_hangs(world):
    """It counts as one of the two that may be in flight."""
    quick = world.begin(("ECHO", "quick"))
    await world.after(SECONDS_BETWEEN_CALLS / 10)
    world.wire.answer(0)
    await quick
    tasks = [*await world.busy(1), world.begin(("ECHO", "c"))]
    await world.after(PATIENCE_SECONDS * 0.8)
    world.wire.answer(1)
    tasks.append(world.begin(("ECHO", "d")))
    await world.after(PATIENCE_SECONDS * 0.4)
    for word, calls in (("e", 5), ("f", 5)):
        tasks.append(world.begin(("ECHO", word)))
        await turn()
        assert len(world.wire.calls) == calls
    assert world.wire.commands(4) == [["ECHO", "d"], ["ECHO", "e"]]
    for index in range(2, 5):
        world.wire.answer(index)
    await turn()
    world.wire.answer(5)
    await asyncio.gather(*tasks)


@playing
async def test_calls_that_hang_hold_up_once_and_then_nobody(world):
    hanging = await world.busy()
    waited = world.begin(("ECHO", "waits"))
    await world.after(PATIENCE_SECONDS * 1.5)
    assert len(world.wire.calls) == 3
    world.wire.answer(2)
    assert await waited == [b"waits"]
    at_once = world.begin(("ECHO", "goes"))
    await turn()
    assert len(world.wire.calls) == 4
    world.wire.answer(3)
    assert await at_once == [b"goes"]
    world.wire.answer(0)
    world.wire.answer(1)
    await asyncio.gather(*hanging)


@playing
async def test_one_members_failure_is_its_own(world):
    tasks = await world.busy()
    fine, wrong, two = (
        world.begin(("ECHO", "fine")),
        world.begin(("INCR", "text")),
        world.begin(("ECHO", "x"), ("INCR", "text")),
    )
    await turn()
    world.wire.answer(0)
    await turn()
    error = b"-ERR value is not an integer\r\n"
    world.wire.answer(2, b"+fine\r\n", error, b"+x\r\n", error)
    world.wire.answer(1)
    assert await fine == [b"fine"]
    (reply,) = await wrong
    assert isinstance(reply, CommandError)
    assert (await two)[0] == b"x"
    await asyncio.gather(*tasks)


@playing
async def test_a_lone_command_that_is_refused_is_refused_in_a_shared_call_too(world):
    tasks = await world.busy()
    fine, refused = world.begin(("ECHO", "fine")), world.begin(("SET", "k", "v"))
    await turn()
    world.wire.answer(0)
    await turn()
    world.wire.answer(2, b"+fine\r\n", b"-NOPERM this user may not, says s3cret\r\n")
    world.wire.answer(1)
    assert await fine == [b"fine"]
    with pytest.raises(Refused) as raised:
        await refused
    assert "s3cret" not in str(raised.value)
    await asyncio.gather(*tasks)


@pytest.mark.parametrize(
    "error",
    [UnexpectedAnswer("html"), Refused("no"), DeadlineExceeded("no response within 60 s")],
)
def test_an_error_of_the_whole_call_is_raised_in_each_as_its_own(error):
    @playing
    async def play(world):
        tasks = await world.busy()
        shared = [world.begin(("ECHO", "c")), world.begin(("ECHO", "d"))]
        await turn()
        world.wire.answer(0)
        await turn()
        world.wire.fail(2, error)
        world.wire.answer(1)
        raised = await asyncio.gather(*shared, return_exceptions=True)
        assert [type(one) for one in raised] == [type(error)] * 2
        assert [str(one) for one in raised] == [str(error)] * 2
        assert raised[0] is not raised[1]
        await asyncio.gather(*tasks)

    play()


@playing
async def test_after_a_loss_only_the_pipelines_that_only_read_are_sent_once_more(world):
    tasks = await world.busy()
    writer = world.begin(("INCR", "n"))
    readers = [
        world.begin(("GET", "a"), reads_only=True),
        world.begin(("GET", "b"), reads_only=True),
    ]
    await turn()
    world.wire.answer(0)
    await turn()
    world.wire.fail(2, ConnectionLost("gone"))
    await turn()
    assert world.wire.commands(3) == [["GET", "a"], ["GET", "b"]]
    with pytest.raises(ConnectionLost):
        await writer
    world.wire.fail(3, ConnectionLost("gone again"))
    for reader in readers:
        with pytest.raises(ConnectionLost, match="again"):
            await reader
    world.wire.answer(1)
    await asyncio.gather(*tasks)
    assert len(world.wire.calls) == 4


@playing
async def test_a_shared_call_that_only_reads_is_sent_once_more_in_all(world):
    tasks = await world.busy()
    readers = [
        world.begin(("GET", "a"), reads_only=True),
        world.begin(("GET", "b"), reads_only=True),
    ]
    await turn()
    world.wire.answer(0)
    await turn()
    world.wire.fail(2, ConnectionLost("gone"))
    await turn()
    world.wire.fail(3, ConnectionLost("gone again"))
    world.wire.answer(1)
    for reader in readers:
        with pytest.raises(ConnectionLost, match="again"):
            await reader
    await asyncio.gather(*tasks)
    assert len(world.wire.calls) == 4


@playing
async def test_a_shared_call_that_was_never_made_is_sent_once_more_with_all_of_it(world):
    tasks = await world.busy()
    shared = [world.begin(("INCR", "a")), world.begin(("GET", "b"), reads_only=True)]
    await turn()
    world.wire.answer(0)
    await turn()
    world.wire.fail(2, NotConnected("refused"))
    await turn()
    assert world.wire.commands(3) == world.wire.commands(2)
    world.wire.answer(3)
    world.wire.answer(1)
    assert await asyncio.gather(*shared) == [[b"a"], [b"b"]]
    await asyncio.gather(*tasks)


@playing
async def test_scripts_that_are_not_known_are_sent_in_full_for_those_members_only(world):
    tasks = await world.busy()
    script = Command(("EVALSHA", SCRIPT.sha, 0), script=SCRIPT)
    shared = [world.begin(("ECHO", "c")), world.begin(script), world.begin(("ECHO", "d"))]
    await turn()
    world.wire.answer(0)
    await turn()
    world.wire.answer(2, b"+c\r\n", b"-NOSCRIPT No matching script.\r\n", b"+d\r\n")
    await turn()
    assert world.wire.commands(3) == [["EVAL", TEXT, "0"]]
    world.wire.answer(3, b":1\r\n")
    world.wire.answer(1)
    assert await asyncio.gather(*shared) == [[b"c"], [1], [b"d"]]
    await asyncio.gather(*tasks)


@playing
async def test_arguments_that_cannot_travel_fail_before_anything_is_shared(world):
    tasks = await world.busy()
    fine = world.begin(("ECHO", "c"))
    with pytest.raises(ValueError, match="surrogate"):
        world.begin(("GET", "\ud800"))
    world.wire.answer(0)
    await turn()
    world.wire.answer(2)
    world.wire.answer(1)
    assert await fine == [b"c"]
    await asyncio.gather(*tasks)


@playing
async def test_much_to_send_and_raw_bytes_go_at_once_and_by_themselves(world):
    tasks = await world.busy()
    big = world.begin(("SET", "k", "x" * ALONE_BYTES))
    raw = world.begin(("SET", "k", b"\xff"))
    await turn()
    assert [call.path for call in world.wire.calls[2:]] == ["/", "/set/k"]
    world.wire.answer(2, b"+OK\r\n")
    world.wire.ends[3].set_result(Response(200, "application/octet-stream", b"+OK\r\n"))
    assert await big == await raw == [b"OK"]
    world.wire.answer(0)
    world.wire.answer(1)
    await asyncio.gather(*tasks)


@pytest.mark.parametrize(
    ("command", "fit"),
    [(("ECHO", "x"), MAX_COMMANDS), (("ECHO", "x" * 16_000), MAX_BYTES // 16_011)],
)
def test_a_shared_call_is_bounded_in_commands_and_in_size(command, fit):
    @playing
    async def play(world):
        tasks = await world.busy()
        shared = [world.begin(command) for _ in range(fit + 3)]
        await turn()
        world.wire.answer(0)
        await turn()
        assert len(world.wire.commands(2)) == fit
        world.wire.answer(1)
        await turn()
        assert len(world.wire.commands(3)) == 3
        world.wire.answer(2)
        world.wire.answer(3)
        await asyncio.gather(*tasks, *shared)

    play()


async def met(world):
    """Have two pipelines meet, and everything answered."""
    tasks = await world.busy()
    tasks += [world.begin(("GET", "a")), world.begin(("GET", "b"))]
    await turn()
    for number in range(3):
        world.wire.answer(number)
        await turn()
    await asyncio.gather(*tasks)


@playing
async def test_once_pipelines_have_met_those_who_begin_in_one_turn_share_a_call(world):
    await met(world)
    more = [world.begin(("GET", f"{number}")) for number in range(3)]
    await turn()
    assert world.wire.commands(3) == [["GET", "0"], ["GET", "1"], ["GET", "2"]]
    world.wire.answer(3)
    await asyncio.gather(*more)


@playing
async def test_many_who_meet_no_call_go_in_two(world):
    """So that one half is asked about while what the other was answered is used."""
    await met(world)
    more = [world.begin(("GET", f"{number}")) for number in range(5)]
    await turn()
    assert world.wire.commands(3) == [["GET", "0"], ["GET", "1"], ["GET", "2"]]
    assert world.wire.commands(4) == [["GET", "3"], ["GET", "4"]]
    world.wire.answer(3)
    world.wire.answer(4)
    await asyncio.gather(*more)


@playing
async def test_who_meets_nobody_goes_without_waiting_for_a_turn(world):
    await met(world)
    for number in (3, 4):
        alone = world.begin(("GET", "a"))
        await (turn() if number == 3 else asyncio.sleep(0))
        assert world.wire.commands(number) == [["GET", "a"]]
        world.wire.answer(number)
        await alone


@playing
async def test_the_next_call_goes_before_the_replies_of_the_last_are_used(world):
    tasks = await world.busy()
    calls_when_answered = []

    async def use():
        assert await world.client.execute(pipeline(("ECHO", "c"))) == [b"c"]
        calls_when_answered.append(len(world.wire.calls))

    using = asyncio.ensure_future(use())
    await turn()
    world.wire.answer(0)
    await turn()
    waiting = world.begin(("ECHO", "d"))
    await turn()
    world.wire.answer(2)
    await turn()
    assert calls_when_answered == [4]
    world.wire.answer(1)
    world.wire.answer(3)
    await asyncio.gather(*tasks, using, waiting)


@playing
async def test_after_big_replies_fewer_pipelines_share_a_call(world):
    tasks = await world.busy()
    shared = [world.begin(("GET", "a")), world.begin(("GET", "b"))]
    await turn()
    world.wire.answer(0)
    await turn()
    big = b"*1\r\n$%d\r\n%b\r\n" % (MAX_REPLY_BYTES, b"x" * MAX_REPLY_BYTES)
    more = [world.begin(("GET", f"{number}")) for number in range(3)]
    await turn()
    world.wire.answer(2, big, big)
    await turn()
    assert world.wire.commands(3) == [["GET", "0"], ["GET", "1"]]
    world.wire.answer(1)
    await turn()
    world.wire.answer(3)
    world.wire.answer(4)
    await asyncio.gather(*tasks, *shared, *more)


@playing
async def test_the_longer_the_way_the_more_calls_go_side_by_side(world):
    first = world.begin(("ECHO", "a"))
    await turn()
    await world.after(20.5 * SECONDS_BETWEEN_CALLS)
    world.wire.answer(0)
    await first
    tasks = [world.begin(("ECHO", f"{number}")) for number in range(20)]
    await turn()
    assert len(world.wire.calls) == 21
    for number in range(20):
        world.wire.answer(number + 1)
    assert len(await asyncio.gather(*tasks)) == 20


@playing
async def test_calls_that_take_longer_than_the_patience_count_for_the_length_of_the_way(world):
    """Else those who wait during a long round trip would always wait for the patience."""
    first, second = await world.busy()
    tasks = [world.begin(("ECHO", "waits"))]
    await turn()
    await world.after(PATIENCE_SECONDS * 2)
    assert len(world.wire.calls) == 3
    world.wire.answer(0)
    world.wire.answer(1)
    await asyncio.gather(first, second)
    for number in range(5):
        tasks.append(world.begin(("ECHO", f"{number}")))
        await turn()
    assert len(world.wire.calls) == 8
    for index in range(2, 8):
        world.wire.answer(index)
    await asyncio.gather(*tasks)


def test_coalescing_can_be_turned_off():
    async def main():
        world = World(coalesce=False)
        tasks = [world.begin(("ECHO", f"{number}")) for number in range(5)]
        await turn()
        assert len(world.wire.calls) == 5
        for number in range(5):
            world.wire.answer(number)
        await asyncio.gather(*tasks)

    asyncio.run(main())


def test_an_event_loop_that_ends_amid_calls_leaves_nothing_pending():
    async def main():
        world = World()
        await world.busy()
        world.begin(("ECHO", "c"))
        await turn()
        world.wire.answer(0)
        await turn()

    asyncio.run(main())


def test_an_event_loop_at_the_address_of_one_that_has_ended_has_calls_of_its_own(monkeypatch):
    monkeypatch.setattr(client, "id", lambda _: 1, raising=False)  # as if each were there
    world = World()

    async def main():
        tasks = [*await world.busy(), world.begin(("ECHO", "c"))]
        await turn()
        world.wire.answer(0)
        await turn()
        world.wire.answer(1)
        world.wire.answer(2)
        assert await asyncio.gather(*tasks) == [[b"a"], [b"b"], [b"c"]]
        world.forget()

    for _ in range(2):
        asyncio.run(main())


def test_a_client_keeps_no_event_loop_that_has_ended_amid_calls():
    world = World()
    loops: list[ref[asyncio.AbstractEventLoop]] = []

    async def main():
        tasks = [*await world.busy(), world.begin(("ECHO", "c"))]
        await turn()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        world.forget()
        loops.append(ref(asyncio.get_running_loop()))

    for _ in range(3):
        asyncio.run(main())
    gc.collect()
    assert [loop() is None for loop in loops[:2]] == [True, True]


def test_a_bug_in_a_transport_reaches_everybody_who_waits_for_it():
    @playing
    async def play(world):
        tasks = await world.busy()
        shared = [world.begin(("ECHO", "c")), world.begin(("ECHO", "d"))]
        await turn()
        world.wire.answer(0)
        await turn()
        world.wire.fail(2, ZeroDivisionError("a bug"))
        world.wire.answer(1)
        raised = await asyncio.gather(*shared, return_exceptions=True)
        assert [type(one) for one in raised] == [ZeroDivisionError] * 2
        assert not isinstance(raised[0], UpstashError)
        await asyncio.gather(*tasks)

    play()


def test_event_loops_of_several_threads_may_begin_at_once():
    """Another thread's loop may begin while one removes those that have ended."""

    class Answering(Wire):
        async def send(self, call, seconds, loop=None):
            return Response(200, "application/octet-stream", b":1\r\n")

    client = AsyncClient(Credentials("https://db.example", "t"), transport=Answering)

    async def get():
        return await client.execute(pipeline(("GET", "k")))

    def begin_loops(_):
        return [asyncio.run(get()) for _ in range(50)]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(begin_loops, range(4))) == [[[1]] * 50] * 4
    finally:
        sys.setswitchinterval(interval)


def test_a_call_that_waited_for_most_of_its_deadline_says_nothing_about_upstash():
    """Its error names the deadline that the caller set, not what was left of it."""
    emitted: list[object] = []
    breaker = OnePerProcess(
        lambda: Breaker(slow=30.0, clock=lambda: CLOCK.now, emit=emitted.append)
    )

    async def late_calls(world, number, waits):
        for _ in range(number):
            before = len(world.wire.calls)
            tasks = await world.busy(before) if waits else []
            late = world.begin(("ECHO", "late"), deadline=0.016)
            await world.after(PATIENCE_SECONDS + 0.001 if waits else 0.0)
            world.wire.fail(before + len(tasks), DeadlineExceeded("no response within 0.005 s"))
            with pytest.raises(DeadlineExceeded, match=r"within 0\.016 s"):
                await late
            for index, task in enumerate(tasks):
                world.wire.answer(before + index)
                await task
            if tasks:  # a round trip of no time, so that the next ones have to wait too
                quick = world.begin(("ECHO", "quick"))
                await turn()
                world.wire.answer(before + 3)
                await quick

    async def main():
        world = World(breaker=breaker)
        await late_calls(world, 20, waits=True)
        assert not emitted
        await late_calls(world, 10, waits=False)
        assert len(emitted) == 1

    asyncio.run(main())


@playing
async def test_each_pipeline_of_a_call_that_hangs_is_told_its_own_deadline(world):
    busy = await world.busy()
    gathered = [world.begin(("ECHO", "c"), deadline=seconds) for seconds in (20.0, 30.0)]
    await world.after(PATIENCE_SECONDS)
    world.wire.fail(2, DeadlineExceeded("no response within 19 s"))
    for task, named in zip(gathered, ("within 20 s", "within 30 s"), strict=True):
        with pytest.raises(DeadlineExceeded, match=named):
            await task
    world.wire.answer(0)
    world.wire.answer(1)
    await asyncio.gather(*busy)
