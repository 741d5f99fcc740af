"""Which commands Upstash has over REST, and what becomes of a command on its way to Valkey.

Tables of commands and the rewriting of single commands may live here; nothing is executed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, TypeAlias

from upstash_middleware.local.emulated import EMULATED_WRITES, emulate
from upstash_middleware.local.resp import Failure, Reply, failure
from upstash_middleware.local.scripts import Script, unwrap, unwrap_library, wrap, wrap_library

if TYPE_CHECKING:
    from collections.abc import Callable

Settled: TypeAlias = tuple[Reply, dict[str, int]]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


BLOCKING: Final = _names(
    "BLPOP BRPOP BLMOVE BLMPOP BRPOPLPUSH BZPOPMIN BZPOPMAX BZMPOP WAIT WAITAOF"
)
OF_A_CONNECTION: Final = _names(
    """
    AUTH HELLO SELECT QUIT RESET READONLY READWRITE ASKING
    WATCH UNWATCH MULTI EXEC DISCARD
    SUBSCRIBE UNSUBSCRIBE PSUBSCRIBE PUNSUBSCRIBE SSUBSCRIBE SUNSUBSCRIBE MONITOR
    """
)
OF_THE_OPERATOR: Final = _names(
    """
    ACL BGREWRITEAOF BGSAVE SAVE LASTSAVE CLUSTER CLUSTERSCAN COMMANDLOG CONFIG DEBUG FAILOVER
    LATENCY LOLWUT MIGRATE MODULE PFDEBUG PFSELFTEST PSYNC REPLCONF REPLICAOF
    RESTORE-ASKING ROLE SHUTDOWN SLAVEOF SLOWLOG SWAPDB SYNC
    """
)
ONLY_AT_VALKEY: Final = _names("DELIFEQ LCS MOVE OBJECT SORT SORT_RO SPUBLISH XSETID")
"""What Upstash's list of commands has not: it would work here, and fail in production."""
ONLY_AT_UPSTASH: Final = (
    "JSON.", "SEARCH.", "VECTOR.", "AR", "DELEX", "DIGEST", "SDIFFCARD", "SUNIONCARD",
)  # fmt: skip
"""How the names begin of what Upstash has and Valkey has not."""

LONGEST_WAIT_MS: Final = 30_000
"""How long a reader of streams waits at most, also for one that is to wait for ever."""

RUNS_SCRIPTS: Final = _names("EVAL EVALSHA FCALL")
DENIED_TO_READERS: Final = _names("SCAN KEYS")
FREE_FOR_READERS: Final = _names("PING ECHO TIME COMMAND INFO")
"""Commands that read no key, and are therefore not marked as reading ones."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A command as Valkey gets it, with what makes Upstash's reply of Valkey's."""

    name: str
    """Upper case."""
    command: list[bytes]
    finish: Callable[[Reply], Settled]
    """Valkey's reply to the client's reply, and the calls that a script made, by command."""
    ready: Failure | None = None
    """An answer that needs no asking."""
    waiting: list[bytes] | None = None
    """The command in a form that may wait for its reply, where `command` never does."""

    @classmethod
    def refused(cls, text: str) -> Prepared:
        """A command that is not run at all."""
        return cls("", [], _as_it_is, failure(text.encode()))


@dataclass(slots=True)
class ScriptMemory:
    """Which wrapped script answers to the SHA of the text that was sent."""

    wrapped_shas: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CommandTable:
    """What the Redis server behind says of its commands: which write, and which only read."""

    writing: frozenset[str]
    reading: frozenset[str]

    def may_write(self, prepared: Prepared) -> bool:
        """Whether the command could change the database; scripts could."""
        return _matches(prepared, self.writing) or prepared.name in RUNS_SCRIPTS | EMULATED_WRITES

    def readers_may(self, prepared: Prepared) -> bool:
        """Whether the read-only token is enough for the command."""
        if prepared.name in DENIED_TO_READERS:
            return False
        return _matches(prepared, self.reading) or prepared.name in FREE_FOR_READERS


def read_command_table(reply: Reply) -> CommandTable:
    """Read the reply to COMMAND: each entry a name, an arity, flags, and further on subcommands."""
    flags: dict[str, set[bytes]] = {}
    for entry in reply if isinstance(reply, list) else []:
        _collect_flags(entry, flags)
    return CommandTable(
        writing=frozenset(name for name, marks in flags.items() if b"write" in marks),
        reading=frozenset(name for name, marks in flags.items() if b"readonly" in marks),
    )


def _collect_flags(entry: Reply, flags: dict[str, set[bytes]]) -> None:
    match entry:
        case [bytes() as name, _, list() as marks, *rest]:
            texts = {getattr(mark, "text", mark) for mark in marks}
            flags[name.decode().upper()] = texts  # type: ignore[assignment]  # all are bytes
            for subcommand in rest[-1] if rest and isinstance(rest[-1], list) else []:
                _collect_flags(subcommand, flags)
        case _:
            pass


def _matches(prepared: Prepared, names: frozenset[str]) -> bool:
    if prepared.name in names:
        return True
    if len(prepared.command) < 2:
        return False
    subcommand = prepared.command[1].decode("utf-8", "replace").upper()
    return f"{prepared.name}|{subcommand}" in names


def prepare(command: list[bytes], scripts: ScriptMemory) -> Prepared:
    """What to send for a command that a client sent."""
    name = command[0].decode("utf-8", "replace").upper()
    if name in BLOCKING or name in OF_A_CONNECTION:
        return Prepared.refused(_not_over_rest(name))
    if name in OF_THE_OPERATOR or name in ONLY_AT_VALKEY:
        return Prepared.refused(_not_available(name))
    special = _SPECIAL.get(name)
    return special(name, command, scripts) if special else _plain(name, command)


def _not_over_rest(name: str) -> str:
    return f'ERR Command "{name}" is not allowed in REST or it has a special context path'


def _not_available(name: str) -> str:
    return (
        f"ERR Command is not available: '{name}'. "
        "See https://upstash.com/docs/redis/overall/rediscompatibility for details"
    )


def _not_here(name: str) -> str:
    return (
        f"ERR Command is not available: '{name}' is at Upstash, "
        "but not in the Valkey behind this local server"
    )


def no_permission(name: str) -> str:
    """What the read-only token gets for a command that it is not enough for."""
    return f"NOPERM this user has no permissions to run the '{name}' command or its subcommand"


def was_unknown(reply: Reply) -> bool:
    """Whether Valkey says that it has no such command, so that nothing was run."""
    return isinstance(reply, Failure) and reply.text.startswith(b"ERR unknown command")


def _as_it_is(reply: Reply) -> Settled:
    return reply, {}


def _plain(name: str, command: list[bytes]) -> Prepared:
    def finish(reply: Reply) -> Settled:
        if was_unknown(reply):
            text = _not_here(name) if name.startswith(ONLY_AT_UPSTASH) else _not_available(name)
            return failure(text.encode()), {}
        return reply, {}

    return Prepared(name, emulate(name, command), finish)


def _eval(name: str, command: list[bytes], scripts: ScriptMemory) -> Prepared:
    if len(command) < 3:
        return _plain(name, command)
    script = wrap(command[1])
    scripts.wrapped_shas[script.sha] = script.wrapped_sha
    return Prepared(
        name,
        [command[0], script.wrapped, *command[2:]],
        lambda reply: unwrap(reply, script.sha, "user_script"),
    )


def _evalsha(name: str, command: list[bytes], scripts: ScriptMemory) -> Prepared:
    sha = command[1].decode("utf-8", "replace").lower() if len(command) > 1 else ""
    wrapped_sha = scripts.wrapped_shas.get(sha, sha)
    return Prepared(
        name,
        [command[0], wrapped_sha.encode(), *command[2:]] if len(command) > 1 else command,
        lambda reply: unwrap(_as_redis_says(reply), sha, "user_script"),
    )


def _as_redis_says(reply: Reply) -> Reply:
    """What Upstash says as Redis does, and Valkey more shortly."""
    if isinstance(reply, Failure) and reply.text.startswith(b"NOSCRIPT "):
        return Failure(b"NOSCRIPT No matching script. Please use EVAL.")
    return reply


def _script(name: str, command: list[bytes], scripts: ScriptMemory) -> Prepared:
    subcommand = command[1].upper() if len(command) > 1 else b""
    match subcommand:
        case b"LOAD" if len(command) == 3:
            script = wrap(command[2])
            # Known from here on, so that an EVALSHA further on in the same batch finds it.
            scripts.wrapped_shas[script.sha] = script.wrapped_sha
            return Prepared(
                name, [*command[:2], script.wrapped], lambda reply: _loaded(reply, script)
            )
        case b"EXISTS":
            known = scripts.wrapped_shas
            shas = [sha.decode("utf-8", "replace").lower() for sha in command[2:]]
            asked = [known.get(sha, sha).encode() for sha in shas]
            return Prepared(name, [*command[:2], *asked], _as_it_is)
        case b"DEBUG":
            return Prepared.refused(_not_available("SCRIPT DEBUG"))
        case _:
            return _plain(name, command)


def _loaded(reply: Reply, script: Script) -> Settled:
    return (reply if isinstance(reply, Failure) else script.sha.encode()), {}


def _fcall(name: str, command: list[bytes], _: ScriptMemory) -> Prepared:
    function = command[1].decode("utf-8", "replace") if len(command) > 1 else ""
    return Prepared(name, command, lambda reply: unwrap(reply, function, "user_function"))


def _function(name: str, command: list[bytes], _: ScriptMemory) -> Prepared:
    match command[1].upper() if len(command) > 1 else b"":
        case b"LOAD" if len(command) > 2:
            return Prepared(name, [*command[:-1], wrap_library(command[-1])], _as_it_is)
        case b"LIST":
            return Prepared(name, command, lambda reply: (unwrap_library(reply), {}))
        case _:
            return _plain(name, command)


def _client(name: str, command: list[bytes], _: ScriptMemory) -> Prepared:
    if len(command) > 1 and command[1].upper() == b"SETINFO":
        return _plain(name, command)
    return Prepared.refused(_not_over_rest(name))


def _memory(name: str, command: list[bytes], _: ScriptMemory) -> Prepared:
    if len(command) > 1 and command[1].upper() == b"USAGE":
        return _plain(name, command)
    return Prepared.refused(_not_available(name))


def _read_stream(name: str, command: list[bytes], _: ScriptMemory) -> Prepared:
    """XREAD and XREADGROUP: with BLOCK they wait, but only where nobody waits for them."""
    # In XREADGROUP, a group or a consumer may be called as an option is.
    start = 4 if name == "XREADGROUP" else 1
    options = [word.upper() for word in command[start:]]
    if b"STREAMS" in options:
        options = options[: options.index(b"STREAMS")]
    match options[options.index(b"BLOCK") :] if b"BLOCK" in options else []:
        case [block, wait, *rest] if wait.isdigit():
            after = command[start + len(options) :]
            before = command[: start + len(options) - len(rest) - 2]
            longest = b"%d" % min(int(wait) or LONGEST_WAIT_MS, LONGEST_WAIT_MS)
            return replace(
                _plain(name, [*before, *rest, *after]),
                waiting=[*before, block, longest, *rest, *after],
            )
        case _:  # without BLOCK; or with one that Valkey refuses, and does not wait
            return _plain(name, command)


_SPECIAL: Final[dict[str, Callable[[str, list[bytes], ScriptMemory], Prepared]]] = {
    "CLIENT": _client,
    "EVAL": _eval,
    "EVAL_RO": _eval,
    "EVALSHA": _evalsha,
    "EVALSHA_RO": _evalsha,
    "FCALL": _fcall,
    "FCALL_RO": _fcall,
    "FUNCTION": _function,
    "MEMORY": _memory,
    "SCRIPT": _script,
    "XREAD": _read_stream,
    "XREADGROUP": _read_stream,
}
