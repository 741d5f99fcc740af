"""The commands that Upstash supports over REST, and their translation for Valkey.

Upstash's commands and options that Valkey lacks are emulated with small scripts, which are billed
as one command. Valkey's clock cannot be changed. To advance the server's time, the remaining
lifetime of every key and hash field is shortened once; afterwards, times in commands and in replies
are shifted. Nothing is executed here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from upstash_middleware.local.scripts import (
    READ_ONLY_ARGUMENT,
    lua,
    unwrap,
    unwrap_library,
    wrap,
    wrap_library,
)
from upstash_middleware.local.valkey import Failure, Reply, failure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Command: TypeAlias = list[bytes]
Calls: TypeAlias = dict[str, int]
"""The calls of a script, by command."""
ShaTable: TypeAlias = dict[str, str]
"""Maps the SHA of each original script to the SHA of the wrapped script."""

MAX_WAIT_MS: Final = 30_000
"""The longest wait of XREAD, even if the client sets no limit."""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_BLOCKING: Final = _names(
    "BLPOP BRPOP BLMOVE BLMPOP BRPOPLPUSH BZPOPMIN BZPOPMAX BZMPOP WAIT WAITAOF"
)
_CONNECTION_COMMANDS: Final = _names(
    """
    AUTH HELLO SELECT QUIT RESET READONLY READWRITE ASKING
    WATCH UNWATCH MULTI EXEC DISCARD
    SUBSCRIBE UNSUBSCRIBE PSUBSCRIBE PUNSUBSCRIBE SSUBSCRIBE SUNSUBSCRIBE MONITOR
    """
)
_ADMINISTRATIVE: Final = _names(
    """
    ACL BGREWRITEAOF BGSAVE SAVE LASTSAVE CLUSTER CLUSTERSCAN COMMANDLOG CONFIG DEBUG FAILOVER
    LATENCY LOLWUT MIGRATE MODULE PFDEBUG PFSELFTEST PSYNC REPLCONF REPLICAOF
    RESTORE-ASKING ROLE SHUTDOWN SLAVEOF SLOWLOG SWAPDB SYNC
    """
)
ONLY_AT_VALKEY: Final = _names("DELIFEQ LCS MOVE OBJECT SORT SORT_RO SPUBLISH XSETID")
"""Commands that Upstash does not have: they would work here and fail in production."""
_ONLY_AT_UPSTASH: Final = (
    "JSON.", "SEARCH.", "VECTOR.", "AR", "DELEX", "DIGEST", "SDIFFCARD", "SUNIONCARD",
)  # fmt: skip
"""Prefixes of command names that Valkey does not have."""

_MAY_WRITE: Final = _names("EVAL EVALSHA FCALL XACKDEL XDELEX")
"""Scripts, and emulated commands that Valkey's own command table does not contain."""
_DENIED_TO_READERS: Final = _names("SCAN KEYS")
_FREE_FOR_READERS: Final = _names("PING ECHO TIME COMMAND INFO")
"""Commands that read no key, and are therefore not flagged as reading."""


class CommandTable(Struct, frozen=True):
    """The commands of the Redis server that write, and those that only read."""

    writing: frozenset[str]
    reading: frozenset[str]

    @classmethod
    def from_reply(cls, reply: Reply) -> CommandTable:
        """Read the reply to COMMAND: entries with name, arity, flags, …, and last subcommands."""
        writing, reading = set(), set()
        entries = list(reply) if isinstance(reply, list) else []
        for entry in entries:  # the list grows during the loop
            match entry:
                case [bytes() as name, _, list() as flags, *rest]:
                    texts = {getattr(flag, "text", flag) for flag in flags}
                    if b"write" in texts:
                        writing.add(name.decode().upper())
                    if b"readonly" in texts:
                        reading.add(name.decode().upper())
                    if rest and isinstance(rest[-1], list):
                        entries += rest[-1]
        return cls(frozenset(writing), frozenset(reading))

    def may_write(self, prepared: Prepared) -> bool:
        """Whether the command may change the database."""
        return prepared.name in _MAY_WRITE or not self.writing.isdisjoint(prepared.names)

    def is_read_only(self, prepared: Prepared) -> bool:
        """Whether the read-only token is sufficient for the command."""
        if prepared.name in _DENIED_TO_READERS:
            return False
        return prepared.name in _FREE_FOR_READERS or not self.reading.isdisjoint(prepared.names)


class Prepared(Struct, frozen=True):
    """A command for Valkey, and the conversion of Valkey's reply to Upstash's."""

    name: str
    """Upper case."""
    command: Command
    finish: Callable[[Reply], tuple[Reply, Calls]] = lambda reply: (reply, {})
    """Converts Valkey's reply to the client's reply and the calls of a script."""
    rejected: Failure | None = None
    """The reply to a command that is not sent."""
    waiting: Command | None = None
    """The form of the command that may wait for its reply; `command` never waits."""

    @property
    def names(self) -> Sequence[str]:
        """The command's name, and with its subcommand as in Valkey's table: ``NAME|SUB``."""
        if len(self.command) < 2:
            return (self.name,)
        return self.name, f"{self.name}|{_text(self.command[1]).upper()}"


def reject(text: str) -> Prepared:
    """A command that gets an error as reply and is not run."""
    return Prepared("", [], rejected=failure(text))


def is_unknown(reply: Reply) -> bool:
    """Whether Valkey does not have this command, so that nothing was run."""
    return isinstance(reply, Failure) and reply.text.startswith(b"ERR unknown command")


def prepare(command: Command, shas: ShaTable, advanced_ms: int = 0) -> Prepared:
    """Prepare a command from a client for Valkey."""
    name = _text(command[0]).upper()
    if name in _BLOCKING or name in _CONNECTION_COMMANDS:
        return _not_over_rest(name)
    if name in _ADMINISTRATIVE or name in ONLY_AT_VALKEY:
        return reject(_not_available(name))
    subcommand = command[1].upper() if len(command) > 1 else b""
    if name == "CLIENT" and subcommand != b"SETINFO":
        return _not_over_rest(name)
    if name == "MEMORY" and subcommand != b"USAGE":
        return reject(_not_available(name))
    if advanced_ms:
        command = _to_valkey_time(name, command, advanced_ms)
    special = _SPECIAL.get(name)
    prepared = special(name, command, shas) if special else _plain(name, command)
    if advanced_ms and (name == "TIME" or name.endswith("EXPIRETIME")):
        return replace(prepared, finish=_to_advanced_time(prepared, advanced_ms))
    return prepared


def _text(word: bytes) -> str:
    return word.decode("utf-8", "replace")


def _not_over_rest(name: str) -> Prepared:
    return reject(f'ERR Command "{name}" is not allowed in REST or it has a special context path')


def _not_available(name: str) -> str:
    return (
        f"ERR Command is not available: '{name}'. "
        "See https://upstash.com/docs/redis/overall/rediscompatibility for details"
    )


def _plain(name: str, command: Command) -> Prepared:
    def finish(reply: Reply) -> tuple[Reply, Calls]:
        if is_unknown(reply) and name.startswith(_ONLY_AT_UPSTASH):
            reply = failure(
                f"ERR Command is not available: '{name}' is at Upstash, "
                "but not in the Valkey behind this local server"
            )
        elif is_unknown(reply):
            reply = failure(_not_available(name))
        elif name in _NO_ERROR_AT_UPSTASH and isinstance(reply, Failure):
            error, instead = _NO_ERROR_AT_UPSTASH[name]
            reply = instead if error in reply.text else reply
        return reply, {}

    return Prepared(name, _emulate(name, command), finish)


_NO_ERROR_AT_UPSTASH: Final[dict[str, tuple[bytes, Reply]]] = {
    "COPY": (b"source and destination objects are the same", 0),
    "SCAN": (b"unknown type name", [b"0", []]),
    "XINFO": (b"NOGROUP No such consumer group", []),
}
"""Errors of Valkey in cases where Upstash replies with a value."""


# Commands that need more than `_plain`.


def _eval(name: str, command: Command, shas: ShaTable) -> Prepared:
    if len(command) < 3:
        return _plain(name, command)
    script = wrap(command[1])
    shas[script.sha] = script.wrapped_sha
    return Prepared(
        name,
        [command[0], script.wrapped, *command[2:]],
        lambda reply: unwrap(reply, script.sha, "user_script"),
    )


def _evalsha(name: str, command: Command, shas: ShaTable) -> Prepared:
    if len(command) < 2:
        return Prepared(name, command)
    sha = _text(command[1]).lower()

    def finish(reply: Reply) -> tuple[Reply, Calls]:
        if isinstance(reply, Failure) and reply.text.startswith(b"NOSCRIPT "):
            return Failure(b"NOSCRIPT No matching script. Please use EVAL."), {}
        return unwrap(reply, sha, "user_script")

    return Prepared(name, [command[0], shas.get(sha, sha).encode(), *command[2:]], finish)


def _script(name: str, command: Command, shas: ShaTable) -> Prepared:
    match command[1].upper() if len(command) > 1 else b"":
        case b"LOAD" if len(command) == 3:
            script = wrap(command[2])
            # Set now, so that a later EVALSHA in the same batch finds it.
            shas[script.sha] = script.wrapped_sha

            def finish(reply: Reply) -> tuple[Reply, Calls]:
                return (reply if isinstance(reply, Failure) else script.sha.encode()), {}

            return Prepared(name, [*command[:2], script.wrapped], finish)
        case b"EXISTS":
            sent = [_text(sha).lower() for sha in command[2:]]
            return Prepared(name, [*command[:2], *(shas.get(sha, sha).encode() for sha in sent)])
        case b"DEBUG":
            return reject(_not_available("SCRIPT DEBUG"))
        case _:
            return _plain(name, command)


def _fcall(name: str, command: Command, _: ShaTable) -> Prepared:
    function = _text(command[1]) if len(command) > 1 else ""
    if name == "FCALL_RO" and len(command) > 2:
        # Valkey requires the flag no-writes; Upstash runs every function and rejects its writes.
        command = [b"FCALL", *command[1:], READ_ONLY_ARGUMENT]
    return Prepared(name, command, lambda reply: unwrap(reply, function, "user_function"))


def _function(name: str, command: Command, _: ShaTable) -> Prepared:
    match command[1].upper() if len(command) > 1 else b"":
        case b"LOAD" if len(command) > 2:
            return Prepared(name, [*command[:-1], wrap_library(command[-1])])
        case b"LIST":
            return Prepared(name, command, lambda reply: (unwrap_library(reply), {}))
        case _:
            return _plain(name, command)


def _read_stream(name: str, command: Command, _: ShaTable) -> Prepared:
    """XREAD and XREADGROUP: with BLOCK they wait, except in a pipeline or a transaction."""
    # In XREADGROUP, a group or a consumer may have the same name as an option.
    start = 4 if name == "XREADGROUP" else 1
    options = [word.upper() for word in command[start:]]
    if b"STREAMS" in options:
        options = options[: options.index(b"STREAMS")]
    match options[options.index(b"BLOCK") :] if b"BLOCK" in options else []:
        case [block, wait, *rest] if wait.isdigit():
            after = command[start + len(options) :]
            before = command[: start + len(options) - len(rest) - 2]
            longest = b"%d" % min(int(wait) or MAX_WAIT_MS, MAX_WAIT_MS)
            return replace(
                _plain(name, [*before, *rest, *after]),
                waiting=[*before, block, longest, *rest, *after],
            )
        case _:  # without BLOCK, or with one that Valkey rejects without waiting
            return _plain(name, command)


_SPECIAL: Final[dict[str, Callable[[str, Command, ShaTable], Prepared]]] = {
    "EVAL": _eval,
    "EVAL_RO": _eval,
    "EVALSHA": _evalsha,
    "EVALSHA_RO": _evalsha,
    "FCALL": _fcall,
    "FCALL_RO": _fcall,
    "FUNCTION": _function,
    "SCRIPT": _script,
    "XREAD": _read_stream,
    "XREADGROUP": _read_stream,
}


# Advanced time.


_MS_PER_UNIT: Final = {
    "EXPIREAT": 1000, "PEXPIREAT": 1, "HEXPIREAT": 1000, "HPEXPIREAT": 1,
    "EXPIRETIME": 1000, "PEXPIRETIME": 1, "HEXPIRETIME": 1000, "HPEXPIRETIME": 1,
    "EXAT": 1000, "PXAT": 1,
}  # fmt: skip


def _to_valkey_time(name: str, command: Command, advanced_ms: int) -> Command:
    """The command with its absolute time, if it has one, converted to Valkey's clock."""
    at, unit = 0, name
    if name in {"EXPIREAT", "PEXPIREAT", "HEXPIREAT", "HPEXPIREAT"}:
        at = 2
    elif name in {"SET", "GETEX", "HSETEX", "HGETEX"}:
        for index, word in enumerate(command[2:], start=3):
            if word.upper() in {b"EXAT", b"PXAT"}:
                at, unit = index, _text(word).upper()
                break
    if not at or at >= len(command) or not command[at].isdigit():
        return command
    moved = max(1, int(command[at]) - advanced_ms // _MS_PER_UNIT[unit])
    return [*command[:at], b"%d" % moved, *command[at + 1 :]]


def _to_advanced_time(
    prepared: Prepared, advanced_ms: int
) -> Callable[[Reply], tuple[Reply, Calls]]:
    """The `finish` of TIME or EXPIRETIME, which converts times to the advanced clock."""

    def shift(reply: Reply) -> Reply:
        match reply:
            case [bytes() as seconds, bytes() as micros] if prepared.name == "TIME":
                moved = 1_000_000 * int(seconds) + 1000 * advanced_ms + int(micros)
                return [b"%d" % (moved // 1_000_000), b"%d" % (moved % 1_000_000)]
            case list():
                return [shift(member) for member in reply]
            case int() if reply > 0:
                return reply + advanced_ms // _MS_PER_UNIT[prepared.name]
            case _:
                return reply

    def finish(reply: Reply) -> tuple[Reply, Calls]:
        finished, calls = prepared.finish(reply)
        return shift(finished), calls

    return finish


# Emulated commands and options.


def _emulate(name: str, command: Command) -> Command:  # noqa: PLR0911 - a table of cases
    """The command, or the script that replaces it."""
    words = [word.upper() for word in command]
    match name:
        case "BITOP" if len(command) > 3 and words[1] in {b"DIFF", b"DIFF1", b"ANDOR", b"ONE"}:
            keys = command[2:]
            return [b"EVAL", lua("bitop"), b"%d" % len(keys), *keys, words[1]]
        case "SCAN":
            rest = [word for word in command[1:] if word.upper() != b"WITHTYPE"]
            if len(rest) < len(command) - 1:
                return [b"EVAL", lua("scan_with_types"), b"0", *rest]
        case "XTRIM" | "XADD":
            # With ``~``, Valkey keeps up to a hundred additional entries.
            last = command.index(b"*") if b"*" in command else len(command)
            if b"~" in command[2:last] and b"LIMIT" not in words[2:last]:
                at = command.index(b"~", 2)
                return [*command[:at], *command[at + 1 :]]
        case "ZRANGESTORE":
            return _range_with_limit(command)
        case "XREADGROUP" if b"NOACK" in words[4:] and b"BLOCK" not in words[4:]:
            if b"STREAMS" in words[4:]:
                keys = command[words.index(b"STREAMS", 4) + 1 :]
                keys = keys[: len(keys) // 2]
                return [
                    *(b"EVAL", lua("read_without_consumer"), b"%d" % len(keys), *keys),
                    *(command[2], command[3], *command),
                ]
        case "XDELEX" if len(command) > 4:
            return [b"EVAL", lua("delete_entries"), b"1", command[1], b"", *command[2:]]
        case "XACKDEL" if len(command) > 5:
            return [b"EVAL", lua("delete_entries"), b"1", *command[1:]]
        case "XDELEX" | "XACKDEL":
            text = f"ERR wrong number of arguments for '{name.lower()}' command"
            return [b"EVAL", b"return {err = ARGV[1]}", b"0", text.encode()]
    return command


def _range_with_limit(command: Command) -> Command:
    """ZRANGESTORE with LIMIT over positions, which Valkey rejects, as a script."""
    options = [word.upper() for word in command[5:]]
    if b"LIMIT" not in options or b"BYSCORE" in options or b"BYLEX" in options:
        return command
    at = 5 + options.index(b"LIMIT")
    limit, rest = command[at + 1 : at + 3], command[5:at] + command[at + 3 :]
    if len(limit) != 2:
        return command
    return [
        *(b"EVAL", lua("range_with_limit"), b"2", command[1], command[2], *limit),
        *(command[3], command[4], *rest, b"WITHSCORES"),
    ]
