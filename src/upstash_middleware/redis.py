"""``Redis`` and ``AsyncRedis``: the commands of upstash-redis over this package's client.

They are subclasses of ``upstash_redis.Redis`` and ``upstash_redis.asyncio.Redis`` with the same
commands and result types, for an application's own data. This package's client adds a deadline, a
circuit breaker, kept-alive connections that work across event loops and forks, and batching:
concurrent commands share a request, but never with those of the middleware. A command that may
have run is not sent again.

Every error is both one of this package's and ``upstash_redis.errors.UpstashError``.
"""

from __future__ import annotations

import os
import time
from json import dumps
from typing import TYPE_CHECKING, Any, ClassVar, Never, Self

import upstash_redis
import upstash_redis.asyncio
from msgspec.structs import replace
from upstash_redis.asyncio.client import AsyncPipeline
from upstash_redis.client import Pipeline as SyncPipeline
from upstash_redis.commands import (
    AsyncJsonCommands,
    AsyncSearchCommands,
    JsonCommands,
    PipelineJsonCommands,
    SearchCommands,
)
from upstash_redis.errors import UpstashError as SdkError
from upstash_redis.format import FORMATTERS, cast_response, format_set, ok_to_bool

from upstash_middleware import errors
from upstash_middleware.core.flow import Command, Pipeline
from upstash_middleware.errors import ConfigurationError
from upstash_middleware.logs import LogObserver
from upstash_middleware.settings import read_setting
from upstash_middleware.upstash import (
    AsyncClient,
    Breaker,
    Client,
    Credentials,
    OnePerProcess,
    own_client,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from upstash_middleware.core.clock import Duration
    from upstash_middleware.core.flow import Argument, Reply

__all__ = ["AsyncRedis", "Redis"]


class _OverClient:
    """How both are created; their clients and the SDK's commands differ."""

    _made_of: ClassVar[tuple[Any, Any, Any]]
    """The classes of the client and of the commands."""
    _client: Any

    def __init__(  # noqa: PLR0913 - keyword arguments, with two of the SDK's
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        deadline: Duration = 1.0,
        decode: bool = True,
        transport: Any = None,
        allow_telemetry: bool = True,
        read_your_writes: bool = True,
        **unsupported: Never,
    ) -> None:
        for argument in unsupported:
            raise TypeError(
                f"{type(self).__name__}() got an unexpected keyword argument {argument!r}"
                f"{_ADVICE.get(argument, '')}"
            )
        if not read_your_writes:
            raise ConfigurationError(
                f"read_your_writes: {read_your_writes!r} should be True, or left out: commands "
                "always observe what this client has written"
            )
        seconds: float = read_setting("deadline", deadline)
        url, token = read_setting("url", url), read_setting("token", token)
        credentials = Credentials.find(url=url, token=token, environ=os.environ)
        if not allow_telemetry:
            credentials = replace(credentials, telemetry=False)
        clients = self._made_of[0]
        own_client(transport, clients.kind)
        options: dict[str, Any] = {"deadline": seconds, "transport": transport}
        breaker = OnePerProcess(_breaker)
        self._set_up(clients(credentials, breaker=breaker, **options), decode=decode)

    @classmethod
    def with_client(cls, client: Client | AsyncClient) -> Self:
        """Return an object that uses a client of this package."""
        self = cls.__new__(cls)
        self._set_up(client, decode=True)
        return self

    def _set_up(self, client: Client | AsyncClient, *, decode: bool) -> None:
        self._client = client
        self._decode = decode
        self._json, self._search = (commands(self) for commands in self._made_of[1:])
        # upstash-ratelimit reads these.
        self._allow_telemetry, self._headers = False, dict[str, str]()

    @classmethod
    def from_env(cls, **options: Any) -> Self:
        """Return an object with the URL and token from the environment.

        Args:
            options: The constructor's other arguments.
        """
        return cls(**options)


class Redis(_OverClient, upstash_redis.Redis):  # type: ignore[misc]  # its from_env has other options
    """A thread-safe drop-in replacement for ``upstash_redis.Redis``.

    Args:
        url: The REST URL; default UPSTASH_REDIS_REST_URL.
        token: The REST token; default UPSTASH_REDIS_REST_TOKEN.
        deadline: Seconds that a command, pipeline or transaction may take in all; default 1, 60 at
            most.
        decode: Whether strings are returned as ``str``; False returns ``bytes``.
        transport: How calls are made, as in the settings: ``"sockets"``, ``"httpx"``, or your own
            ``httpx.Client`` (for ``AsyncRedis``, ``httpx.AsyncClient``), which is not closed.
        allow_telemetry: Whether calls name the versions of this package and of Python; default
            True, unless UPSTASH_DISABLE_TELEMETRY is set.
        read_your_writes: Only True: commands always observe what this client has written.
        unsupported: Other arguments of upstash-redis raise TypeError.

    Raises:
        ConfigurationError: For an argument that is wrong, and a URL or token that is missing.
    """

    _made_of = (Client, JsonCommands, SearchCommands)

    def execute(self, command: list[Any]) -> Any:
        """Perform a command and return its result; raises UpstashError."""
        try:
            (reply,) = self._client.execute(_pipeline([command]))
        except errors.UpstashError as error:
            raise _as_sdk_error(error) from error
        return _result(command, reply, self, decode=self._decode)

    def pipeline(self) -> RedisPipeline:
        """Return a pipeline: its commands are sent in one request, not atomically."""
        return RedisPipeline(self, transaction=False)

    def multi(self) -> RedisPipeline:
        """Return a transaction: its commands are sent in one request, atomically."""
        return RedisPipeline(self, transaction=True)

    def close(self) -> None:
        """Close the connections; a later command opens them again."""
        self._client.close()


class RedisPipeline(SyncPipeline):
    """Commands that ``exec()`` sends in one request."""

    def __init__(self, redis: Redis, *, transaction: bool) -> None:
        self._redis = redis
        self._transaction = transaction
        self._json = PipelineJsonCommands(self)
        self._command_stack: list[list[Any]] = []

    def exec(self, *, return_exceptions: bool = False) -> list[Any]:
        """Send the commands and return their results in order.

        Args:
            return_exceptions: Whether the error of a failed command is returned in its place.
                Otherwise the first one is raised, with all results in its attribute ``results``.

        Raises:
            UpstashError: For a command that failed, or the request as a whole.
        """
        commands, self._command_stack = self._command_stack, []
        client = self._redis._client  # noqa: SLF001
        execute = client.execute_transaction if self._transaction else client.execute
        try:
            replies = execute(_pipeline(commands))
        except errors.UpstashError as error:
            raise _as_sdk_error(error) from error
        return _results(commands, replies, self._redis, return_exceptions=return_exceptions)


class AsyncRedis(_OverClient, upstash_redis.asyncio.Redis):  # type: ignore[misc]  # likewise
    """A drop-in replacement for ``upstash_redis.asyncio.Redis``, for asyncio and trio.

    Several event loops may use one, also concurrently.

    Args:
        url: The REST URL; default UPSTASH_REDIS_REST_URL.
        token: The REST token; default UPSTASH_REDIS_REST_TOKEN.
        deadline: Seconds that a command, pipeline or transaction may take in all; default 1, 60 at
            most.
        decode: Whether strings are returned as ``str``; False returns ``bytes``.
        transport: How calls are made: ``"sockets"``, ``"httpx"``, or your own
            ``httpx.AsyncClient``, which is not closed.
        allow_telemetry: Whether calls name the versions of this package and of Python; default
            True, unless UPSTASH_DISABLE_TELEMETRY is set.
        read_your_writes: Only True: commands always observe what this client has written.
        unsupported: Other arguments of upstash-redis raise TypeError.

    Raises:
        ConfigurationError: For an argument that is wrong, and a URL or token that is missing.
    """

    _made_of = (AsyncClient, AsyncJsonCommands, AsyncSearchCommands)

    async def execute(self, command: list[Any]) -> Any:
        """Perform a command and return its result; raises UpstashError."""
        try:
            (reply,) = await self._client.execute(_pipeline([command]))
        except errors.UpstashError as error:
            raise _as_sdk_error(error) from error
        return _result(command, reply, self, decode=self._decode)

    def pipeline(self) -> AsyncRedisPipeline:
        """Return a pipeline: its commands are sent in one request, not atomically."""
        return AsyncRedisPipeline(self, transaction=False)

    def multi(self) -> AsyncRedisPipeline:
        """Return a transaction: its commands are sent in one request, atomically."""
        return AsyncRedisPipeline(self, transaction=True)

    async def close(self) -> None:
        """Close the connections; a later command opens them again."""
        await self._client.aclose()


class AsyncRedisPipeline(AsyncPipeline):
    """Commands that ``exec()`` sends in one request."""

    def __init__(self, redis: AsyncRedis, *, transaction: bool) -> None:
        self._redis = redis
        self._transaction = transaction
        self._json = PipelineJsonCommands(self)
        self._command_stack: list[list[Any]] = []

    async def exec(self, *, return_exceptions: bool = False) -> list[Any]:
        """Send the commands and return their results in order; see ``RedisPipeline.exec``."""
        commands, self._command_stack = self._command_stack, []
        client = self._redis._client  # noqa: SLF001
        execute = client.execute_transaction if self._transaction else client.execute
        try:
            replies = await execute(_pipeline(commands))
        except errors.UpstashError as error:
            raise _as_sdk_error(error) from error
        return _results(commands, replies, self._redis, return_exceptions=return_exceptions)


# Shared by both ----------------------------------------------------------------------------------

_READ_ONLY = frozenset(
    "BITCOUNT BITPOS DBSIZE ECHO EVALSHA_RO EVAL_RO EXISTS EXPIRETIME GEODIST GEOHASH GEOPOS "  # noqa: SIM905
    "GEOSEARCH GET GETBIT GETRANGE HEXISTS HGET HGETALL HKEYS HLEN HMGET HRANDFIELD HSCAN HSTRLEN "
    "HVALS JSON.GET JSON.MGET JSON.TYPE KEYS LINDEX LLEN LPOS LRANGE MGET PEXPIRETIME PFCOUNT PING "
    "PTTL RANDOMKEY SCAN SCARD SDIFF SINTER SISMEMBER SMEMBERS SMISMEMBER SRANDMEMBER SSCAN STRLEN "
    "SUBSTR SUNION TIME TTL TYPE XINFO XLEN XRANGE XREVRANGE ZCARD ZCOUNT ZLEXCOUNT ZMSCORE "
    "ZRANDMEMBER ZRANGE ZRANGEBYLEX ZRANGEBYSCORE ZRANK ZREVRANGE ZREVRANK ZSCAN ZSCORE".split()
)
"""Commands that only read, which are sent once more if they were lost on the way."""

_ADVICE = {
    "rest_encoding": "; leave it out: replies never change a byte",
    "rest_retries": "; leave it out: a call is repeated where that is safe, within deadline=",
    "rest_retry_interval": "; leave it out: a call is repeated where that is safe, at once",
}
"""On arguments of the SDK's constructors that have no meaning here."""

_log = LogObserver()


def _breaker() -> Breaker:
    return Breaker(slow=None, clock=time.monotonic, emit=_log)


def _pipeline(commands: Sequence[list[Any]]) -> Pipeline:
    if not all(commands):  # Upstash would reject the whole batch
        raise errors.CommandError("ERR empty command")
    made = [
        Command(tuple(map(_argument, command)), _keyword(command[0]) in _READ_ONLY)
        for command in commands
    ]
    return Pipeline(tuple(made), alone=any(map(_may_block, commands)))


def _may_block(command: list[Any]) -> bool:
    """Whether a command may wait; XREAD and XREADGROUP are the only such commands at Upstash."""
    if _keyword(command[0]) not in {"XREAD", "XREADGROUP"}:
        return False
    return "BLOCK" in map(_keyword, command[1:8])


def _keyword(word: Any) -> str:
    """Return a word of a command, text or bytes, in upper case."""
    return (word.decode("latin-1") if isinstance(word, bytes) else str(word)).upper()


def _argument(value: Any) -> Argument:
    """Return an argument as text or bytes; as the SDK does it, and bytes as they are."""
    if isinstance(value, str | bytes):
        return value
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    return dumps(value)


def _result(command: list[Any], reply: Reply, redis: Any, *, decode: bool) -> Any:
    if isinstance(reply, errors.CommandError):
        raise _as_sdk_error(reply)
    value: Any = reply
    if decode or (reply == b"OK" and _returns_status(command)):
        value = _decode_text(reply)
    return cast_response(command, value, redis)


def _returns_status(command: list[Any]) -> bool:
    """Whether the SDK compares the reply with ``OK``, so that it has to be text."""
    formatter = FORMATTERS.get(command[0]) or FORMATTERS.get(" ".join(map(str, command[:2])))
    return formatter is ok_to_bool or (formatter is format_set and "GET" not in command[3:])


def _results(
    commands: list[list[Any]], replies: list[Reply], redis: Any, *, return_exceptions: bool
) -> list[Any]:
    results: list[Any] = []
    failed: Any = None
    for command, reply in zip(commands, replies, strict=True):
        try:
            results.append(_result(command, reply, redis, decode=redis._decode))  # noqa: SLF001
        except SdkError as error:
            failed = failed or error
            results.append(error)
    if failed is not None and not return_exceptions:
        failed.results = results
        raise failed
    return results


def _decode_text(reply: Any) -> Any:
    if isinstance(reply, bytes):
        try:
            return reply.decode()
        except UnicodeDecodeError as error:
            raise UndecodableReply(
                f"the value of {len(reply)} bytes is not UTF-8; use decode=False to read bytes"
            ) from error
    if isinstance(reply, list):
        return [_decode_text(member) for member in reply]
    return reply


class RedisError(errors.UpstashError, SdkError):
    """Base of the errors that commands raise: this package's and the SDK's."""

    results: list[Any]
    """In a pipeline, the results of all its commands, with errors in place of some."""


class UndecodableReply(RedisError, ValueError):
    """A reply contains bytes that are not UTF-8; ``decode=False`` returns bytes."""


# Classes of the module, by their names, since unpickling looks them up.


class CircuitOpen(errors.CircuitOpen, RedisError):
    __doc__ = errors.CircuitOpen.__doc__


class CommandError(errors.CommandError, RedisError):
    __doc__ = errors.CommandError.__doc__


class ConnectionLost(errors.ConnectionLost, RedisError):
    __doc__ = errors.ConnectionLost.__doc__


class DeadlineExceeded(errors.DeadlineExceeded, RedisError):
    __doc__ = errors.DeadlineExceeded.__doc__


class NotConnected(errors.NotConnected, RedisError):
    __doc__ = errors.NotConnected.__doc__


class Refused(errors.Refused, RedisError):
    __doc__ = errors.Refused.__doc__


class UnexpectedAnswer(errors.UnexpectedAnswer, RedisError):
    __doc__ = errors.UnexpectedAnswer.__doc__


_SDK_ERRORS: dict[type[errors.UpstashError], type[RedisError]] = {
    errors.CircuitOpen: CircuitOpen,
    errors.CommandError: CommandError,
    errors.ConnectionLost: ConnectionLost,
    errors.DeadlineExceeded: DeadlineExceeded,
    errors.NotConnected: NotConnected,
    errors.Refused: Refused,
    errors.UnexpectedAnswer: UnexpectedAnswer,
}


def _as_sdk_error(error: errors.UpstashError) -> RedisError:
    return _SDK_ERRORS.get(type(error), RedisError)(*error.args)
