"""Values of the application on Redis: get, set, count, and load if missing.

A value is stored at ``PREFIX:data:KEY``. Without metadata it is plain JSON, so a counter is a
number for Redis. Otherwise it is ``~EPOCHS LF META LF JSON``, or ``!EPOCHS LF SEALED`` if
cache_keys is set. A value records the epochs that were read before it was loaded, as stored
responses do. It is invalid if one of them has changed: the epoch of everything of its kind and, if
it has tags, the epochs of these tags, which stored responses share.

``values.py`` encodes values as JSON. If the store fails, a read is a miss, and a write emits an
event; with ``strict``, the write raises the error.
"""

from __future__ import annotations

import math
import os
import re
from base64 import b64decode, b64encode
from hashlib import sha256
from operator import index
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct, json
from msgspec.structs import replace

from upstash_middleware.core.cache.entries import (
    Epochs,
    Validity,
    epoch_text,
    validity,
    with_ancestors,
)
from upstash_middleware.core.cache.exchanges import NotShared, Revalidations, SingleFlight
from upstash_middleware.core.cache.keys import Names
from upstash_middleware.core.cache.redis_store import (
    MAX_CALL_BYTES,
    UNSHARED,
    Lock,
    RedisStore,
    read_scripts,
    script_call,
    values_of,
)
from upstash_middleware.core.cache.store import UNSHARED_SECONDS
from upstash_middleware.core.flow import Command, Pipeline, Sleep, Wait, call, is_text
from upstash_middleware.core.lru import LRU
from upstash_middleware.core.values import Codec, Unreadable
from upstash_middleware.errors import (
    CommandError,
    ConfigurationError,
    DeadlineExceeded,
    Refused,
    UpstashError,
)
from upstash_middleware.events import (
    CacheEntryRefused,
    UpstashAnswered,
    UpstashFailed,
    UserCodeFailed,
    ignored_by,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from upstash_middleware.core.cache.entries import Sealing
    from upstash_middleware.core.clock import Clock
    from upstash_middleware.core.flow import Flow, Reply
    from upstash_middleware.events import Observer

MISSING: Final[Any] = object()
"""The absence of a value, to distinguish it from None."""
MAX_TTL: Final = 400 * 24 * 3600.0
"""The maximum time to live of a value without tags, in seconds."""
MAX_INTEGER: Final = 2**53 - 1
"""The maximum of counters: Lua represents integers exactly up to this."""

_MAX_KEY_LENGTH = 1024
_MAX_TAGS_LENGTH = 4096
"""Characters. Longer lists of tags are not remembered."""
_EPOCHS_TRUSTED_SECONDS = 10.0
"""Seconds for which remembered epochs are used to store a value without a read."""
_MAX_REMEMBERED = 10_000
_FIRST_PAUSE, _MAX_PAUSE = 0.05, 0.5
"""Seconds between reads of another process's lock."""
_COMMANDS, _BYTES = 1000, 5_000_000
"""The maximum number of commands and bytes in one pipeline of ``set_many``."""
_L1_OVERHEAD_BYTES = 500
_UPSTASH_ANSWERED = UpstashAnswered("data read")
_FRAME_MARKS = frozenset({b"~", b"!"})
_EPOCH_NEVER_SEEN = "", -math.inf, -math.inf
_NO_EPOCHS_SEEN = "", "", -math.inf, -math.inf


class Record(Struct, frozen=True):
    """A stored value with its metadata."""

    payload: bytes
    """The value as encoded by the codec."""
    epochs: Epochs = Epochs()
    """The epochs read before the value was loaded; those of tags in the order of ``tags``."""
    tags: tuple[str, ...] = ()
    """The tags, with all their ancestors."""
    fresh_until: float = 0.0
    """When the value becomes stale, in seconds since 1970; 0 if it then expires on Redis."""
    seconds: float = 0.0
    """How long the loader took."""
    token: str = ""
    """The token of the lock that was held during loading."""


class _Meta(Struct, array_like=True, omit_defaults=True):
    token: str = ""
    tags: tuple[str, ...] = ()
    fresh_until: float = 0.0
    seconds: float = 0.0


_read_meta = json.Decoder(_Meta).decode


def pack(key: str, record: Record, sealing: Sealing | None = None) -> bytes:
    """Return the bytes that are stored for a record at this key."""
    epochs, meta = str(record.epochs.everything), b""
    if record.tags:
        of_tags = (record.epochs.tags[tag] for tag in record.tags)
        epochs = "|".join([epochs, record.epochs.any_tag, *map(str, of_tags)])
    if record.tags or record.fresh_until:
        meta = json.encode([record.token, record.tags, record.fresh_until, record.seconds])
    elif record.token:
        meta = json.encode([record.token])
    if sealing is not None:
        sealed = b64encode(sealing.seal(key, meta + b"\n" + record.payload))
        return b"!%s\n%s" % (epochs.encode("latin-1"), sealed)
    if not meta and epochs == ":":
        return record.payload
    return b"~%s\n%s\n%s" % (epochs.encode("latin-1"), meta, record.payload)


def unpack(key: str, data: bytes, sealing: Sealing | None = None) -> Record | None:
    """Parse the bytes at a key; None if they are no record, or are sealed with another key."""
    mark = data[:1]
    if mark not in _FRAME_MARKS:
        return Record(data) if sealing is None else None
    if (mark == b"!") != (sealing is not None):
        return None
    try:
        recorded, content = data[1:].split(b"\n", 1)
        if sealing is not None:
            content = bytes(sealing.open(key, memoryview(b64decode(content, validate=True))))
        head, payload = content.split(b"\n", 1)
        everything, *others = recorded.decode("latin-1").split("|")
        meta = _read_meta(head) if head else _Meta()
        epochs = Epochs.parse([everything, "", *(others or [""])], meta.tags)
    except (ValueError, RecursionError):
        return None
    return Record(payload, epochs, meta.tags, meta.fresh_until, meta.seconds, meta.token)


class ReadValue(Struct, frozen=True):
    """The result of reading a key."""

    key: str
    data: bytes | None = None
    """The bytes on Redis."""
    record: Record | None = None
    state: Validity = Validity.INVALID
    epochs: Epochs = Epochs()
    """The current epochs."""
    lock: Lock | None = None
    wall: float = 0.0
    monotonic: float = 0.0
    """The monotonic time at which it was read."""
    unreachable: bool = False


class _Reading(Struct, frozen=True):
    """One read command: the keys of values, and the epochs of everything, any tag and tags."""

    keys: Sequence[str]
    tags: tuple[str, ...]
    all_keys: Sequence[str]
    lock: str | None
    wall: float
    monotonic: float
    changes: int
    purges: int
    """The numbers of this process's changes and purges before the read."""


class Loading(Struct, frozen=True):
    """The arguments of ``get_or_set``: how to load and store a missing value."""

    name: str
    """The key that the application uses."""
    load: Callable[[], Any]
    """The loader: returns the value, or an awaitable of it."""
    ttl: float
    """Seconds for which the value is fresh."""
    tags: tuple[str, ...] = ()
    """The tags, with their ancestors."""
    type: Any = None
    stale: float = 0.0
    """Seconds after ``ttl`` during which the stale value is used while it is loaded again."""
    early: float = 0.0
    """How early the value is loaded again before it is stale; 1 is optimal, 0 is never."""
    lock: bool = True
    """Whether only one process loads it at a time."""
    wait: float = 5.0
    """The maximum number of seconds to wait for another call that loads the value."""


class _SharedValue(Struct, frozen=True):
    """A loaded value for the callers that wait for it."""

    payload: bytes
    epochs: Epochs | None
    """The epochs read before loading; None if Upstash was unreachable."""
    tags: tuple[str, ...]
    begun: float
    """The monotonic time at which loading began, or at which the value was read."""


class _SharedError(Struct, frozen=True):
    """The exception of a loader, for the callers that wait for its value."""

    error: Exception


class NotCountable(ValueError, TypeError):
    """The stored value is not an integer, or is out of range."""


class _Writing:
    """The context of a write: emits an UpstashError, and suppresses it unless ``strict``."""

    __slots__ = ("_keys", "_store", "_strict")

    def __init__(self, store: DataStore, keys: Iterable[str], *, strict: bool) -> None:
        self._store = store
        self._keys = [*keys]
        self._strict = strict

    def __enter__(self) -> None:
        self._store.note_change(*self._keys)

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        self._store.note_change(*self._keys)  # even after an error, the write may have succeeded
        if isinstance(error, UpstashError):
            self._store.emit_failure("data write", error)
            return not self._strict
        if error is None:
            self._store.emit_answered()
        return False


class DataStore(RedisStore):
    """The values of one kind under one prefix. Methods are flows unless documented otherwise.

    Each kind has its own keys and its own epoch of everything. Tags are shared with stored
    responses.
    """

    def __init__(  # noqa: PLR0913 - each is a separate setting
        self,
        kind: str = "data",
        *,
        prefix: str,
        clock: Clock,
        emit: Observer,
        randomness: Callable[[int], bytes] = os.urandom,
        sealing: Sealing | None = None,
        codec: Codec | None = None,
        read_deadline: float = 0.25,
        write_deadline: float = 1.0,
        tagged_keep: float = 7 * 24 * 3600.0,
        l1_bytes: int = 0,
        l1_seconds: float = 5.0,
    ) -> None:
        """Create a store; nothing is sent to Upstash.

        ``tagged_keep`` is the maximum time to live of values with tags in seconds, the same as for
        stored responses. ``l1_bytes`` of memory keep values for ``l1_seconds`` after a read.
        """
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", kind):
            raise ConfigurationError(
                f"kind={kind!r} should be a name of letters, digits, '_', '.' and '-'"
            )
        # Counters of rules are at PREFIX:NAME, and no escaped NAME contains a number sign.
        self._names = Names(prefix)
        self._root = f"{prefix}:data:" if kind == "data" else f"{prefix}:data#{kind}:"
        self._lock_root = f"{prefix}:data#{kind}#lock:"
        self._epoch = f"{prefix}:data#{kind}#epoch"
        self.clock: Clock = clock
        self.randomness: Callable[[int], bytes] = randomness
        self.deadline: float = write_deadline
        self.max_keep: float = MAX_TTL
        self._read_deadline = read_deadline
        self._tagged_keep = tagged_keep
        self._emit = emit
        self._ignored = ignored_by(emit)
        self._sealing = sealing
        self._codec = codec or Codec()
        self._flights = SingleFlight(clock)
        self._refreshes = Revalidations(clock)
        self._guesses: LRU[str, tuple[str, ...]] = LRU(_MAX_REMEMBERED)
        """The last known tags of values, by key; the next read includes their epochs."""
        self._seen: LRU[str, tuple[str, float, float]] = LRU(_MAX_REMEMBERED)
        """Epochs by tag, with the times when they were read."""
        self._seen_general = _NO_EPOCHS_SEEN
        """The epochs of everything and of any tag, with the time when they were read."""
        self._written: LRU[str, float] = LRU(_MAX_REMEMBERED)
        """When this process last changed a key; values whose loading began earlier are outdated."""
        self._ended: LRU[str, None] = LRU(_MAX_REMEMBERED)
        """Tokens of locks that this process has released; nobody needs to wait for them."""
        self._l1: LRU[str, tuple[ReadValue, Record]] = LRU(l1_bytes)
        self._l1_seconds = l1_seconds
        self._l1_changes = 0
        """The numbers of this process's changes and purges. Values read before the last one may be
        outdated."""
        self._purges = 0
        read_scripts("incr", "lock")

    # --- Arguments ------------------------------------------------------------------------------

    def key(self, name: str) -> str:
        """Return the key of a value on Redis. Not a flow. Raises TypeError or ValueError."""
        return self._root + _key_part(name)

    def encode(self, value: object, type: Any = None) -> bytes:  # noqa: A002 - as in ``Codec``
        """Return the payload of a value. Not a flow. Raises NotStorable."""
        return self._codec.encode(value, type)

    def longest(self, tags: Sequence[str]) -> float:
        """Return the maximum time to live of a value with these tags, in seconds. Not a flow."""
        return min(self._tagged_keep, MAX_TTL) if tags else MAX_TTL

    # --- Reading --------------------------------------------------------------------------------

    async def get(self, name: str, default: Any = None, type: Any = None) -> Any:  # noqa: A002
        """Return a value; ``default`` if it is missing or stale, or if the store fails."""
        key = self.key(name)
        found = self._from_l1(key)
        if found is None:
            reading = self._reading([key])
            try:
                values = await self._read_values(reading.all_keys)
                data, everything, *_ = values
                is_plain = everything is None and self._sealing is None and not self._l1.room
                if data is None or (is_plain and data[:1] not in _FRAME_MARKS):  # the usual case
                    self._remember_epochs(reading, values)
                    return self._decode(key, data, type, default)
                (found,) = await self._interpret(reading, values)
            except UpstashError as error:
                self.emit_failure("data read", error)
                return default
        return self._value(found, type, default) if self._is_fresh(found) else default

    async def get_many(self, names: Iterable[str], type: Any = None) -> dict[str, Any]:  # noqa: A002
        """Return the existing values by name, with one command."""
        by_key = {self.key(name): name for name in names}
        known = {key: found for key in by_key if (found := self._from_l1(key)) is not None}
        try:
            if unread := [key for key in by_key if key not in known]:
                known |= {found.key: found for found in await self._read(unread)}
        except UpstashError as error:
            self.emit_failure("data read", error)
        fresh = {name: known[key] for key, name in by_key.items() if key in known}
        values = {
            name: self._value(found, type, MISSING)
            for name, found in fresh.items()
            if self._is_fresh(found)
        }
        return {name: value for name, value in values.items() if value is not MISSING}

    async def _read(
        self, keys: Sequence[str], tags: tuple[str, ...] = (), *, lock: str | None = None
    ) -> list[ReadValue]:
        """Read values and their epochs: one command, or two if their tags are not those remembered.

        The epochs of ``tags`` are always read. ``lock`` is the key of a lock to read.
        """
        reading = self._reading(keys, tags, lock)
        return await self._interpret(reading, await self._read_values(reading.all_keys))

    def _reading(
        self, keys: Sequence[str], tags: tuple[str, ...] = (), lock: str | None = None
    ) -> _Reading:
        for key in keys:
            if key in self._guesses:
                tags = tuple(dict.fromkeys((*tags, *(self._guesses.use(key) or ()))))
        clock = self.clock
        return _Reading(
            keys,
            tags,
            [
                *(*keys, self._epoch, self._names.any_tag, *map(self._names.tag, tags)),
                *([] if lock is None else [lock]),
            ],
            lock,
            clock.wall(),
            clock.monotonic(),
            self._l1_changes,
            self._purges,
        )

    async def _interpret(
        self, reading: _Reading, values: Sequence[bytes | None]
    ) -> list[ReadValue]:
        """Return the values read; first read the missing epochs of their tags."""
        keys, lock = reading.keys, reading.lock
        epochs = self._remember(reading, values)
        records = [self._record(key, data) for key, data in zip(keys, values, strict=False)]
        unread = {
            tag: None
            for record in records
            if record is not None and validity(record.epochs, epochs) is Validity.UNKNOWN
            for tag in record.tags
            if tag not in epochs.tags
        }
        if unread:
            more = await self._read_values(list(map(self._names.tag, unread)))
            parsed = Epochs.parse(["", "", "", *map(epoch_text, more)], tuple(unread))
            epochs = replace(epochs, tags={**epochs.tags, **parsed.tags})
        held = (values[-1] or b"").decode("latin-1") if lock is not None else ""
        found = []
        for key, data, record in zip(keys, values, records, strict=False):
            state = Validity.INVALID if record is None else validity(record.epochs, epochs)
            done = (record is not None and record.token == held) or held in self._ended
            of = None if lock is None else Lock(lock, held, done)
            each = ReadValue(key, data, record, state, epochs, of, reading.wall, reading.monotonic)
            found.append(each)
            if record is not None:
                self._learn_tags(key, record.tags)
                self._keep_in_l1(each, record, reading.changes)
        return found

    async def _read_values(self, keys: Sequence[str]) -> list[bytes | None]:
        command = Command(("MGET", *keys), reads_only=True)
        replies = await Pipeline((command,), deadline=self._read_deadline, yields=True)
        values = values_of(replies[0], len(keys))
        if UpstashAnswered not in self._ignored:
            self._emit(_UPSTASH_ANSWERED)
        return values

    def _record(self, key: str, data: bytes | None) -> Record | None:
        if data is None:
            return None
        record = unpack(key, data, self._sealing)
        if record is None:
            sealed = "" if self._sealing is None else ", or sealed under none of cache_keys"
            self._emit(CacheEntryRefused(key, f"no value of this version, or damaged{sealed}"))
        return record

    def _is_fresh(self, found: ReadValue) -> bool:
        record = found.record
        if record is None or found.state is not Validity.VALID:
            return False
        return not record.fresh_until or self.clock.wall() < record.fresh_until

    def _value(self, found: ReadValue, kind: Any, default: Any) -> Any:
        payload = None if found.record is None else found.record.payload
        return self._decode(found.key, payload, kind, default)

    def _decode(self, key: str, payload: bytes | None, kind: Any, default: Any) -> Any:
        if payload is None:
            return default
        try:
            return self._codec.decode(payload, kind)
        except Unreadable as error:
            self._emit(CacheEntryRefused(key, str(error)))
            return default

    def _learn_tags(self, key: str, tags: tuple[str, ...]) -> None:
        if tags and sum(map(len, tags)) <= _MAX_TAGS_LENGTH:
            self._guesses.put(key, tags)
        elif key in self._guesses:
            self._guesses.remove(key)

    # --- L1: what was read, in the memory of this process ---------------------------------------

    def _from_l1(self, key: str) -> ReadValue | None:
        if not self._l1.room:
            return None
        kept = self._l1.use(key)
        if kept is None:
            return None
        found, clock = kept[0], self.clock
        age = max(clock.wall() - found.wall, clock.monotonic() - found.monotonic)
        # If it is stale, there may be a newer value on Redis.
        return found if age < self._l1_seconds and self._is_fresh(found) else None

    def _keep_in_l1(self, found: ReadValue, record: Record, changes: int) -> None:
        if self._l1.room and found.state is Validity.VALID and changes == self._l1_changes:
            size = (
                _L1_OVERHEAD_BYTES
                + len(found.key)
                + len(found.data or b"")
                + sum(map(len, record.tags))
            )
            self._l1.put(found.key, (replace(found, data=None, lock=None), record), size)

    def note_change(self, *keys: str) -> None:
        """Note that this process changes values, so that L1 does not use older ones. Not a flow."""
        self._l1_changes += 1
        now = self.clock.monotonic()
        for key in keys:
            self._written.put(key, now)
        if self._l1.room:
            self._l1.remove(*keys)

    def drop_purged(self, tags: Iterable[str] | None) -> None:
        """Forget this process's values with any of these tags; None means all values.

        Not a flow.
        """
        self._l1_changes += 1
        self._purges += 1
        self._seen.clear()
        self._seen_general = _NO_EPOCHS_SEEN
        if tags is None:
            self._l1.clear()
        elif self._l1.room:
            purged = set(tags)
            self._l1.remove_if(lambda kept: not purged.isdisjoint(kept[1].tags))

    def forget(self) -> None:
        """Clear this process's memory. Nothing on Redis is deleted. Not a flow."""
        self.drop_purged(None)
        for table in (self._guesses, self._written, self._ended):
            table.clear()
        self._flights = SingleFlight(self.clock)
        self._refreshes.clear()

    # --- Epochs ---------------------------------------------------------------------------------

    def _remember(self, reading: _Reading, values: Sequence[bytes | None]) -> Epochs:
        """Return the epochs read, and remember them."""
        everything, *others = self._remember_epochs(reading, values)
        return Epochs.parse([everything, "", *others], reading.tags)

    def _remember_epochs(self, reading: _Reading, values: Sequence[bytes | None]) -> list[str]:
        begin = len(reading.keys)
        texts = [epoch_text(value) for value in values[begin : begin + 2 + len(reading.tags)]]
        if reading.purges == self._purges:  # otherwise they may be older than a purge
            at = reading.wall, reading.monotonic
            self._seen_general = (texts[0], texts[1], *at)
            for tag, text in zip(reading.tags, texts[2:], strict=True):
                self._seen.put(tag, (text, *at))
        return texts

    def _remembered_epochs(self, tags: tuple[str, ...]) -> tuple[Epochs, bool]:
        """Return the remembered epochs, and whether all of them were read recently."""
        wall, monotonic = self.clock.wall(), self.clock.monotonic()
        everything, any_tag, *at = self._seen_general
        texts, times = [], [at]
        for tag in tags:
            text, *at = self._seen.get(tag) or _EPOCH_NEVER_SEEN
            texts.append(text)
            times.append(at)
        lately = all(max(wall - at[0], monotonic - at[1]) < _EPOCHS_TRUSTED_SECONDS for at in times)
        return Epochs.parse([everything, "", any_tag if tags else "", *texts], tags), lately

    # --- Storing --------------------------------------------------------------------------------

    async def set(
        self,
        name: str,
        payload: bytes,
        ttl: float,
        tags: tuple[str, ...] = (),
        *,
        strict: bool = False,
    ) -> bool:
        """Store a value for ``ttl`` seconds; return whether it succeeded.

        One command if the epochs are remembered, otherwise two commands in one call.
        """
        key = self.key(name)
        with _Writing(self, [key], strict=strict):
            epochs, known = self._remembered_epochs(tags)
            command = self._command(key, Record(payload, epochs, tags), ttl)
            if known:
                await self.call(command)
                return True
            _, _, current = await self._with_epochs(command, tags)
            if current != epochs:
                await self.call(self._command(key, Record(payload, current, tags), ttl))
            return True
        return False

    async def set_many(
        self,
        payloads: Mapping[str, bytes],
        ttl: float,
        tags: tuple[str, ...] = (),
        *,
        strict: bool = False,
    ) -> bool:
        """Store values in as few calls as possible; return whether all were stored."""
        by_key = {self.key(name): payload for name, payload in payloads.items()}
        if not by_key:
            return True
        with _Writing(self, by_key, strict=strict):
            epochs, known = self._remembered_epochs(tags)
            if not known:
                reading = self._reading((), tags)
                values = await self._read_values(reading.all_keys)
                epochs = _epochs_to_record(self._remember(reading, values), tags)
            commands: list[Command] = []
            size = 0
            for key, each in by_key.items():
                if commands and (len(commands) >= _COMMANDS or size + len(each) > _BYTES):
                    await self.call(*commands)
                    commands, size = [], 0
                commands.append(self._command(key, Record(each, epochs, tags), ttl))
                size += len(each)
            await self.call(*commands)
            return True
        return False

    async def add(
        self,
        name: str,
        payload: bytes,
        ttl: float,
        tags: tuple[str, ...] = (),
        *,
        strict: bool = False,
    ) -> bool:
        """Store a value if there is none; return whether it was stored, False after an error.

        Two commands in one call. It can be used as a lock: it returns True to one caller only.
        """
        key = self.key(name)
        with _Writing(self, [key], strict=strict):
            epochs, _ = self._remembered_epochs(tags)
            command = self._command(key, Record(payload, epochs, tags), ttl, "NX")
            added, values, current = await self._with_epochs(command, tags, key)
            before: Any = command.args[2]  # our own value, invalid if the epochs have changed
            if added and current == epochs:
                return True
            if not added:
                before, record = values[0] or "", self._record(key, values[0])
                if record is not None and record.tags:  # their epochs have not been read
                    (found,) = await self._read([key])
                    before = found.data or ""
                else:
                    state = Validity.INVALID if record is None else validity(record.epochs, current)
                    found = ReadValue(key, values[0], record, state)
                if self._is_fresh(found):
                    return False
            return await self._replace(key, before, Record(payload, current, tags), ttl)
        return False

    async def _with_epochs(
        self, command: Command, tags: tuple[str, ...], *keys: str
    ) -> tuple[Reply, list[bytes | None], Epochs]:
        """Send a command, and then read the given keys and the epochs, in the same call.

        Returns the reply, the values, and the epochs that a value with these tags records.
        """
        reading = self._reading(keys, tags)
        then = Command(("MGET", *reading.all_keys), reads_only=True)
        reply, read = await self.call(command, then)
        values = values_of(read, len(reading.all_keys))
        return reply, values, _epochs_to_record(self._remember(reading, values), tags)

    async def _replace(self, key: str, before: bytes | str, record: Record, ttl: float) -> bool:
        """Store a record if the value at the key is still ``before``; return whether it was.

        Raises CommandError if ``before`` is binary data that this package cannot have written.
        """
        if isinstance(before, bytes) and not is_text(before):
            raise CommandError(f"ERR the value of {key!r} is not of this package; delete it")
        data = self._pack_checked(key, record)
        (done,) = await self.call(script_call("lock", [key], before, data, _milliseconds(ttl)))
        return done == 1

    def _command(self, key: str, record: Record, ttl: float, *options: str) -> Command:
        data = self._pack_checked(key, record)
        return Command(("SET", key, data, "PX", _milliseconds(ttl), *options))

    def _pack_checked(self, key: str, record: Record) -> bytes:
        data = pack(key, record, self._sealing)
        if len(data) > MAX_CALL_BYTES:
            # The error that the server would return, without sending the value.
            raise Refused(f"ERR max request size exceeded: the value has {len(data)} bytes")
        return data

    def emit_answered(self) -> None:
        """Emit that a call succeeded. Not a flow."""
        if UpstashAnswered not in self._ignored:
            self._emit(_UPSTASH_ANSWERED)

    def emit_failure(self, during: str, error: UpstashError) -> None:
        """Emit that a call failed. Not a flow."""
        self._emit(UpstashFailed(during, error))

    # --- Changing -------------------------------------------------------------------------------

    async def delete(self, *names: str, strict: bool = False) -> bool:
        """Delete values; return whether any existed or was being loaded. One command.

        A purged value counts as existing until it expires.
        """
        return any(await self._delete(names, strict=strict)) if names else False

    async def discard(self, *names: str, strict: bool = False) -> bool:
        """Do the same as ``delete``, but return whether the command succeeded."""
        return not names or bool(await self._delete(names, strict=strict))

    async def _delete(self, names: Iterable[str], *, strict: bool) -> list[Reply]:
        keys = [self.key(name) for name in names]
        # Also delete the locks: with its value gone, a released lock would look held.
        command = Command(("DEL", *keys, *(self._lock_root + _key_part(name) for name in names)))
        with _Writing(self, keys, strict=strict):
            return await self.call(command)
        return []

    async def touch(self, name: str, ttl: float, *, strict: bool = False) -> bool:
        """Set a value's time to live to ``ttl`` seconds; return whether the value exists."""
        key = self.key(name)
        with _Writing(self, [key], strict=strict):
            # An invalid value must not be kept for longer than the epoch that invalidates it.
            (found,) = await self._read([key])
            record = found.record
            if record is None or not self._is_fresh(found):
                return False
            ttl = min(ttl, self.longest(record.tags))
            if record.fresh_until:
                fresh = replace(record, fresh_until=self.clock.wall() + ttl)
                return await self._replace(key, found.data or b"", fresh, ttl)
            (done,) = await self.call(Command(("PEXPIRE", key, _milliseconds(ttl))))
            return done == 1
        return False

    async def incr(
        self, name: str, delta: int = 1, ttl: float | None = None, *, strict: bool = False
    ) -> int | None:
        """Add to a stored integer and return the sum. The time to live does not change.

        A missing value counts as 0 and is kept for ``ttl`` seconds. The result is None if ``ttl``
        is None and the value is missing, or if the store fails. Raises ValueError if the value is
        not an integer or has tags, and ConfigurationError if values are sealed.
        """
        if self._sealing is not None:
            raise ConfigurationError(
                "incr: cache_keys is set, so values are signed or encrypted, and Redis cannot add "
                "to them; use INCR of the client (request.state.upstash, flask.redis, "
                "django.redis), or leave out cache_keys"
            )
        if isinstance(delta, bool) or not hasattr(delta, "__index__"):
            raise TypeError(f"incr: delta={delta!r} should be an integer, such as 1 or -1")
        delta = index(delta)
        if not -MAX_INTEGER <= delta <= MAX_INTEGER:
            raise ValueError(f"incr: delta={delta} should be between -2**53 and 2**53")
        key, lifetime = self.key(name), "" if ttl is None else _milliseconds(ttl)
        command = script_call("incr", [key, self._epoch], delta, lifetime)
        with _Writing(self, [key], strict=strict):
            for _ in range(3):
                (reply,) = await self.call(command)
                if isinstance(reply, bytes):
                    return int(reply)
                if reply == 1:
                    raise ValueError(
                        f"incr: {name!r} would be beyond 2**53, the maximum of counters"
                    )
                if reply is None:
                    return None
                (found,) = await self._read([key])
                if found.record is not None and self._is_fresh(found):
                    what = "has tags" if found.record.tags else "is not an integer below 2**53"
                    if found.record.fresh_until and not found.record.tags:
                        what = "is loaded with stale= or early="
                    raise NotCountable(
                        f"incr: the value of {name!r} {what}; use a separate key for the counter, "
                        "which incr creates"
                    )
                if ttl is None:
                    return None
                counter = Record(b"%d" % delta, _epochs_to_record(found.epochs, ()))
                if await self._replace(key, found.data or b"", counter, ttl):
                    return delta
        return None

    # --- Purging --------------------------------------------------------------------------------

    async def purge_everything(self, *, soft: bool = False) -> None:
        """Invalidate all values of this kind. One command. Raises UpstashError."""
        self.drop_purged(None)
        try:
            await self.replace_epochs([self._epoch], None, soft=soft)
        finally:  # even after an error, the purge may have succeeded
            self.drop_purged(None)

    # --- Loading what is missing ----------------------------------------------------------------

    async def get_or_set(self, loading: Loading) -> tuple[Any, Flow[Any] | None]:
        """Return a value, loaded if it is missing, and a flow that reloads it, or None.

        The caller must run the flow to its end, at once or in the background. Its result is the new
        value, or MISSING.

        Raises the loader's exceptions, and NotStorable for a value that cannot be stored.
        """
        found = self._from_l1(self.key(loading.name))
        if found is not None:
            value = self._value(found, loading.type, MISSING)
            if value is not MISSING:
                return value, None
        try:
            found = await self._look_up(loading)
        except UpstashError as error:
            self.emit_failure("data read", error)
            now = self.clock.monotonic()
            found = ReadValue(self.key(loading.name), monotonic=now, unreachable=True)
        value = self._usable(loading, found)
        if value is MISSING:
            return await self._load_once(loading, found), None
        record = found.record
        if record is None or (self._is_fresh(found) and not self._is_early(loading, record)):
            return value, None
        return value, self._refresh(loading, found) if self._refreshes.begin(found.key) else None

    async def _look_up(self, loading: Loading) -> ReadValue:
        lock = self._lock_root + _key_part(loading.name) if loading.lock else None
        return (await self._read([self.key(loading.name)], loading.tags, lock=lock))[0]

    def _usable(self, loading: Loading, found: ReadValue) -> Any:
        """Return a value that may be used, even if it is stale; MISSING if there is none."""
        stale = loading.stale > 0 and found.state in {Validity.VALID, Validity.STALE}
        if stale or self._is_fresh(found):
            return self._value(found, loading.type, MISSING)
        return MISSING

    async def _load_once(self, loading: Loading, found: ReadValue) -> Any:
        """Load a value; if another call in this process loads it, wait for that one first."""
        clock, until = self.clock, self.clock.monotonic() + loading.wait
        flights = self._flights
        while (left := until - clock.monotonic()) > 0:
            flight, leads = flights.join(found.key)
            if flight is None:
                break
            if leads:
                try:
                    value, shared, storing = await self._lead(loading, found, until)
                except Exception as error:
                    flights.resolve(flight, _SharedError(error), in_time=True)
                    flights.forget(flight)
                    del flight  # breaks a reference cycle: flight, error, traceback, this frame
                    raise
                except BaseException:
                    flights.resolve(flight, NotShared.INTERRUPTED, in_time=True)
                    raise
                flights.resolve(flight, shared, in_time=True)
                try:
                    await storing
                finally:
                    storing.close()
                    flights.forget(flight)
                return value
            if not await Wait(flight.latch, left):
                break
            result = flight.result
            if isinstance(result, _SharedError):
                try:
                    raise result.error
                finally:
                    del flight, result  # breaks the same cycle
            if isinstance(result, _SharedValue):
                value = self._value_from_leader(loading, found, result)
                if value is not MISSING:
                    return value
                flights.forget(flight)
        value, _, storing = await self._load(loading, found, "")
        await storing
        return value

    def _value_from_leader(self, loading: Loading, found: ReadValue, loaded: _SharedValue) -> Any:
        """Return the value loaded by another call; MISSING if it may predate a purge or write."""
        written = self._written.get(found.key)
        if written is not None and written >= loaded.begun:
            return MISSING
        if loaded.begun < found.monotonic:
            if loaded.epochs is None:
                return MISSING
            recorded = _epochs_to_record(loaded.epochs, loaded.tags)
            if not found.unreachable and validity(recorded, found.epochs) is not Validity.VALID:
                return MISSING
        try:
            return self._codec.decode(loaded.payload, loading.type)
        except Unreadable:  # the other call has another ``type``
            return MISSING

    async def _lead(
        self, loading: Loading, found: ReadValue, until: float
    ) -> tuple[Any, _SharedValue, Flow[None]]:
        """Load a value; if another process loads it, wait for its value first."""
        token, pause = "", _FIRST_PAUSE
        try:
            while not token and (lock := found.lock) is not None and not lock.unshared:
                if not lock.held:
                    # The lock expires before the value, which shows that the lock is released.
                    token = await self.acquire(lock, min(loading.wait, loading.ttl)) or ""
                    if token:
                        break
                if (left := until - self.clock.monotonic()) <= 0:
                    break
                await Sleep(min(pause, left))
                pause = min(pause * 1.5, _MAX_PAUSE)
                found = await self._look_up(loading)
                value = self._usable(loading, found)
                if value is not MISSING and found.record is not None:
                    record = found.record
                    at = found.monotonic
                    loaded = _SharedValue(record.payload, record.epochs, record.tags, at)
                    return value, loaded, _do_nothing()
        except UpstashError as error:
            self.emit_failure("data read", error)
        return await self._load(loading, found, token)

    async def _load(
        self, loading: Loading, found: ReadValue, token: str
    ) -> tuple[Any, _SharedValue, Flow[None]]:
        """Call the loader; return its value, the value for waiting callers, and a storing flow."""
        begun = self.clock.monotonic()
        try:
            value = await call(loading.load)
            payload = self._codec.encode(value, loading.type)
        except GeneratorExit:  # the flow was closed
            raise
        except BaseException:
            await self._release(loading, token)
            raise
        epochs = None if found.unreachable else found.epochs
        loaded = _SharedValue(payload, epochs, loading.tags, begun)
        return value, loaded, self._store(loading, found, loaded, token)

    async def _store(
        self, loading: Loading, found: ReadValue, loaded: _SharedValue, token: str
    ) -> None:
        if found.unreachable:
            return
        key, clock = found.key, self.clock
        keep = loading.ttl + loading.stale
        longest = self.longest(loading.tags)
        milliseconds = self.time_to_live(keep, found.wall, found.monotonic, longest)
        written = self._written.get(key)
        if milliseconds <= 0 or (written is not None and written >= loaded.begun):
            await self._release(loading, token)
            return
        is_dated = loading.stale > 0 or loading.early > 0
        record = Record(
            loaded.payload,
            _epochs_to_record(found.epochs, loading.tags),
            loading.tags,
            clock.wall() + loading.ttl if is_dated else 0.0,
            round(clock.monotonic() - loaded.begun, 3) if is_dated else 0.0,
            token,
        )
        try:
            await self.call(self._command(key, record, milliseconds / 1000))
        except UpstashError as error:
            self.emit_failure("data write", error)
            if not isinstance(error, DeadlineExceeded):  # then a release would also time out
                # A refused value, such as one that is too large, will be refused again.
                mark = UNSHARED if isinstance(error, Refused) else ""
                await self._release(loading, token, mark, reports=False)
        finally:
            if token:
                self._ended.put(token, None)
            if self._l1.room:
                self._l1_changes += 1
                self._l1.remove(key)
        self._learn_tags(key, loading.tags)

    async def _release(
        self, loading: Loading, token: str, mark: str = "", *, reports: bool = True
    ) -> None:
        """Release a lock if one was acquired, and leave a mark in its place for some time."""
        if not token:
            return
        self._ended.put(token, None)
        key, seconds = self._lock_root + _key_part(loading.name), UNSHARED_SECONDS
        try:
            await self.release(key, token, mark, seconds if mark else 0.0)
        except UpstashError as error:  # the lock expires
            if reports:
                self.emit_failure("data write", error)

    # --- Reloading ------------------------------------------------------------------------------

    def _is_early(self, loading: Loading, record: Record) -> bool:
        """Whether this call should load the value before it is stale.

        The probability grows towards the end of the value's lifetime, and with the time that the
        loader takes (Vattani et al., Optimal Probabilistic Cache Stampede Prevention, 2015).
        """
        if loading.early <= 0 or not record.fresh_until:
            return False
        uniform = (int.from_bytes(self.randomness(6), "big") + 1) / 2**48
        earlier = record.seconds * loading.early * -math.log(uniform)
        return self.clock.wall() + earlier >= record.fresh_until

    async def _refresh(self, loading: Loading, found: ReadValue) -> Any:
        failed, token = True, ""
        try:
            if found.lock is not None:
                if found.lock.held:
                    failed = False
                    return MISSING
                token = await self.acquire(found.lock, min(loading.wait, loading.ttl)) or ""
                if not token:
                    failed = False
                    return MISSING
            value, _, storing = await self._load(loading, found, token)
            failed = False
            await storing
        except UpstashError as error:
            self.emit_failure("data write", error)
        except Exception as error:  # noqa: BLE001 - the stale value is used
            self._emit(UserCodeFailed(f"the loader of {loading.name!r}", error))
        else:
            return value
        finally:
            self._refreshes.end(found.key, failed=failed)
        return MISSING


def _epochs_to_record(epochs: Epochs, tags: tuple[str, ...]) -> Epochs:
    """Return the current epochs that a value with these tags records."""
    if not tags:
        return Epochs(everything=epochs.everything)
    return replace(epochs, tags={tag: epochs.tags[tag] for tag in tags})


def kind_of(cache: str, key_prefix: str) -> str:
    """Return the kind of values for a framework's cache with this key prefix."""
    if not key_prefix or re.fullmatch(r"[A-Za-z0-9_-]{1,32}", key_prefix):
        return f"{cache}.{key_prefix}".removesuffix(".")
    return f"{cache}..{sha256(key_prefix.encode()).hexdigest()[:32]}"


async def _do_nothing() -> None:
    pass


def _milliseconds(seconds: float) -> int:
    return max(1, int(seconds * 1000))


def _key_part(name: Any) -> str:
    """Return the part of a Redis key for a user's key; a long key is hashed."""
    if not isinstance(name, str):
        raise TypeError(f"a key should be text, not a {type(name).__name__}; write str(…) or f'…'")
    if not name:
        raise ValueError("a key should not be empty")
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the key {name!r:.80} is not valid Unicode") from None
    if len(name) <= _MAX_KEY_LENGTH and name[0] != "#":
        return name
    return f"#{sha256(encoded).hexdigest()}"


def with_all_ancestors(tags: Iterable[str]) -> tuple[str, ...]:
    """Return tags with their ancestors. Raises TypeError or ValueError."""
    if isinstance(tags, str):
        raise TypeError(f"tags={tags!r} should be a sequence such as [{tags!r}]")
    given: tuple[Any, ...] = tuple(tags)
    for tag in given:
        if not isinstance(tag, str) or not tag:
            raise TypeError(f"tags: {tag!r} should be non-empty text")
    found = with_ancestors(given)
    if not isinstance(found, str):
        return found
    raise ValueError(f"tags: a value has {found}")
