"""Encodes Python values as JSON and decodes them, with tagged forms for types that JSON lacks.

A value is encoded only if it decodes to an equal value of the same type; otherwise NotStorable is
raised. Types that JSON lacks become an object with one name that begins with ``$``, such as
``{"$date": "2026-01-31"}``. A dictionary of that shape gets an additional ``$``. Text, numbers,
lists and other dictionaries are plain JSON, so other languages can read them, and Redis can
increment integers.
"""

from __future__ import annotations

import sys
from base64 import b64decode, b64encode
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from math import isfinite
from typing import TYPE_CHECKING, Any, Final, get_args
from uuid import UUID

import msgspec
from msgspec import Struct, json

from upstash_middleware.errors import NotStorable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

MAX_DEPTH: Final = 100
"""The maximum nesting of containers."""

_MAX_INTEGER = 1 << 64
"""Larger integers are written in hexadecimal, because conversion to decimal is slow and limited."""
_CONTAINERS = frozenset({list, dict})
_MAX_SHOWN_PARTS = 8
_MAX_SHOWN_KEY_LENGTH = 40
_PASSED_THROUGH_TYPES = (bytes, datetime, date, time, timedelta, Decimal, UUID)
"""Types that msgspec does not convert to builtins, because this module encodes them."""


class Unreadable(ValueError):
    """The bytes do not encode a value, or encode no value of the requested type."""


class Form(Struct, frozen=True):
    """The tagged form of one more type: two functions that convert it to storable values and back.

    The result of ``pack`` may contain further values to encode. The form applies to exactly this
    type, not to subclasses.
    """

    tag: str
    type: type
    pack: Callable[[Any], Any]
    unpack: Callable[[Any], Any]


class Codec:
    """Encodes and decodes values. ``forms`` adds types to the built-in ones."""

    __slots__ = ("_pack", "_unpack")

    def __init__(self, forms: Iterable[Form] = ()) -> None:
        every = (*_FORMS, *forms)
        self._pack: dict[type, Callable[[Any, int], Any]] = {
            str: _text,
            bool: _as_it_is,
            type(None): _as_it_is,
            int: _integer,
            float: _float,
            list: self._list,
            dict: self._dict,
            tuple: lambda value, depth: {"$tuple": self._list(value, depth)},
            set: self._set,
            frozenset: self._set,
            **{form.type: self._form_packer(form) for form in every},
        }
        self._unpack = _UNPACK | {f"${form.tag}": form.unpack for form in every}

    def encode(self, value: object, type: Any = None) -> bytes:  # noqa: A002 - same name as in ``get``
        """Encode a value.

        Args:
            value: None, bool, int, finite float, str, bytes, datetime, date, time, timedelta,
                Decimal, UUID; a list, tuple, set or frozenset of these; a dict with text as keys.
            type: A dataclass, msgspec Struct or pydantic model, or a type that contains these, such
                as ``list[Product]``: the type of the value. ``decode`` needs the same type.

        Raises:
            NotStorable: The value would not decode to an equal value of the same type.
        """
        if type is not None:
            return self._encode_typed(value, type)
        try:
            if _is_plain(value, 0):
                return json.encode(value)
        except (UnicodeEncodeError, RecursionError):
            pass  # ``tagged`` finds the path of the invalid value
        return json.encode(self.tagged(value))

    def decode(self, data: bytes | memoryview, type: Any = None) -> Any:  # noqa: A002 - as above
        """Decode a value. Raises Unreadable."""
        try:
            value = json.decode(data)
            if b'"$' in bytes(data):
                value = self._untag(value)
            if type is None:
                return value
            if (adapter := _pydantic(type)) is not None:
                return adapter.validate_json(json.encode(value), **_by_name_arguments())
            return msgspec.convert(value, type, str_keys=True)
        except Exception as error:
            raise Unreadable(f"the value does not have the expected form: {error}") from error

    def tagged(self, value: object) -> Any:
        """Return a value in the types of JSON, as ``encode`` writes it. Raises NotStorable."""
        try:
            return self._tag(value, 0)
        except _Refused as refused:
            raise refused.error() from None
        except RecursionError:
            raise _Refused(_TOO_DEEP).error() from None

    def form_of(self, kind: type) -> Form | None:  # noqa: ARG002 - for subclasses
        """Return the form of a type without a form, for classes that are imported later.

        ``forms`` must contain a form with the same tag, which decodes the values of all such types.
        """
        return None

    def _tag(self, value: Any, depth: int) -> Any:
        pack = self._pack.get(type(value))
        if pack is None:
            if (form := self.form_of(type(value))) is None:
                raise _Refused(f"{_describe(value)} cannot be stored; {_remedy(value)}")
            pack = self._pack[type(value)] = self._form_packer(form)
        return pack(value, depth)

    def _dict(self, value: dict[Any, Any], depth: int) -> Any:
        _check_depth(depth)
        entries = {}
        for key, item in value.items():
            _check_key(key)
            try:
                entries[key] = self._tag(item, depth + 1)
            except _Refused as refused:
                refused.parts.append(f"[{_shorten_key(key)}]")
                raise
        return {f"${key}": item for key, item in entries.items()} if _tag_like(value) else entries

    def _list(self, values: Iterable[Any], depth: int, part: str = "") -> list[Any]:
        _check_depth(depth)
        items = []
        for place, item in enumerate(values):
            try:
                items.append(self._tag(item, depth + 1))
            except _Refused as refused:
                refused.parts.append(part or f"[{place}]")
                raise
        return items

    def _set(self, value: set[Any] | frozenset[Any], depth: int) -> Any:
        # Sorted, so that equal sets have equal bytes.
        items = sorted(self._list(value, depth, "{…}"), key=json.encode)
        return {f"${type(value).__name__}": items}

    def _form_packer(self, form: Form) -> Callable[[Any, int], Any]:
        tag, pack = f"${form.tag}", form.pack
        return lambda value, depth: {tag: self._tag(pack(value), depth)}

    def _untag(self, value: Any) -> Any:
        if type(value) is list:
            for place, item in enumerate(value):
                if type(item) in _CONTAINERS:
                    value[place] = self._untag(item)
            return value
        if type(value) is not dict:
            return value
        if _tag_like(value):
            ((name, content),) = value.items()
            content = self._untag(content)
            return {name[1:]: content} if name[1:2] == "$" else self._unpack[name](content)
        for name, item in value.items():
            if type(item) in _CONTAINERS:
                value[name] = self._untag(item)
        return value

    def _encode_typed(self, value: object, kind: Any) -> bytes:
        """Encode a value, and check that it decodes to an equal value."""
        adapter = _pydantic(kind)
        try:
            if adapter is not None:
                plain = adapter.dump_python(
                    value, mode="json", by_alias=False, round_trip=True, warnings="error"
                )
            else:
                plain = msgspec.to_builtins(
                    value, builtin_types=_PASSED_THROUGH_TYPES, str_keys=True
                )
        except (ValueError, TypeError, RecursionError) as error:
            raise NotStorable(
                f"value: {_describe(value)} cannot be stored as {kind!r}: {error}"
            ) from error
        data = self.encode(plain)
        try:
            back = self.decode(data, kind)
        except Unreadable as error:
            raise NotStorable(
                f"value: {_describe(value)} is not a {_type_name(kind)}: {error.__cause__}; "
                "store one, or leave out type="
            ) from error
        if type(back) is type(value) and back != value:
            raise NotStorable(
                f"value: {_describe(value)} does not decode to an equal {_type_name(kind)}: its "
                "class has no comparison, or its type lacks some of its fields; store a "
                f"{_type_name(kind)}, or leave out type="
            )
        try:
            _check_same(value, back)
        except _Refused as refused:
            raise refused.error() from None
        return data


def _is_plain(value: Any, depth: int) -> bool:  # noqa: PLR0911, PLR0912 - one loop, for speed
    """Whether msgspec alone encodes a value so that it decodes to an equal one of the same type."""
    kind = type(value)
    if kind in _CONTAINERS and depth >= MAX_DEPTH:
        return False
    items: Iterable[Any] = (value,)
    if kind is list:
        items = value
    elif kind is dict:
        if _tag_like(value):
            return False
        for key in value:
            if type(key) is not str:
                return False
        items = value.values()
    for item in items:
        kind = type(item)
        if kind is str or kind is bool or item is None:
            continue
        if kind is int:
            if not -_MAX_INTEGER < item < _MAX_INTEGER:
                return False
        elif kind is float:
            if not isfinite(item):
                return False
        elif kind not in _CONTAINERS or not _is_plain(item, depth + 1):
            return False
    return True


def _tag_like(value: dict[Any, Any]) -> bool:
    if len(value) != 1:
        return False
    (key,) = value
    return type(key) is str and key[:1] == "$"


# --- Values that cannot be stored -----------------------------------------------------------------

_TOO_DEEP = (
    f"it is nested more than {MAX_DEPTH} levels deep, or contains itself; store a flatter value"
)
_SURROGATE = (
    "text with a lone surrogate, which is not valid Unicode; store "
    "text.encode('utf-8', 'surrogatepass')"
)
_REMEDIES: tuple[tuple[Callable[[type], bool], str], ...] = (
    (lambda kind: issubclass(kind, Enum), "store its .value"),
    (lambda kind: hasattr(kind, "_asdict"), "store tuple(value) or value._asdict()"),
    (lambda kind: issubclass(kind, datetime), "store datetime.fromisoformat(value.isoformat())"),
    (lambda kind: issubclass(kind, date), "store date.fromisoformat(value.isoformat())"),
    (lambda kind: issubclass(kind, bytearray | memoryview), "store bytes(value)"),
    (lambda kind: hasattr(kind, "model_dump"), "give its type as type=, or store a dict of it"),
    (
        lambda kind: hasattr(kind, "__dataclass_fields__") or issubclass(kind, Struct),
        "give its type as type=, or store a dict of it",
    ),
    *(
        (lambda kind, base=base: issubclass(kind, base), f"store {base.__name__}(value)")
        for base in (str, int, float, bytes, list, dict, tuple, set, frozenset, Decimal)
    ),
    (
        lambda kind: hasattr(kind, "_meta") and hasattr(kind, "pk"),
        "store its primary key, or a dict of the fields that you need",
    ),
    (lambda kind: hasattr(kind, "as_manager"), "store list(value.values())"),
    (lambda kind: hasattr(kind, "tolist"), "store value.tolist()"),
    (lambda kind: hasattr(kind, "__iter__"), "store list(value)"),
)
"""The replacement to suggest for a type. The first that applies is used."""


class _Refused(Exception):
    """A value that cannot be stored. ``parts`` is its path, from the innermost part outwards."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.parts: list[str] = []

    def error(self) -> NotStorable:
        """Return the error for users."""
        parts = self.parts[::-1]
        if len(parts) > _MAX_SHOWN_PARTS:
            parts = [*parts[:_MAX_SHOWN_PARTS], "…"]
        return NotStorable(f"value{''.join(parts)}: {self}")


def _check_depth(depth: int) -> None:
    if depth >= MAX_DEPTH:
        raise _Refused(_TOO_DEEP)


def _check_key(key: object) -> None:
    if type(key) is not str:
        raise _Refused(
            f"the key {_shorten_key(key)} is {_describe(key)}; keys must be text: store "
            "{str(key): …}, or a list of pairs"
        )
    if not _is_unicode(key):
        raise _Refused(f"the key {_shorten_key(key)} is {_SURROGATE}")


def _is_unicode(text: str) -> bool:
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _remedy(value: object) -> str:
    for applies, remedy in _REMEDIES:
        if applies(type(value)):
            return remedy
    return "store its parts as text, numbers, lists and dicts"


def _describe(value: object) -> str:
    return f"a value of the type {_type_name(type(value))}"


def _type_name(kind: Any) -> str:
    if not isinstance(kind, type):
        return repr(kind)
    module = kind.__module__
    return kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"


def _shorten_key(key: object) -> str:
    text = repr(key) if type(key) in {str, int, float, bool, bytes, type(None)} else "…"
    return text if len(text) <= _MAX_SHOWN_KEY_LENGTH else f"{text[:_MAX_SHOWN_KEY_LENGTH]}…"


# --- Built-in forms -----------------------------------------------------------------------------


def _as_it_is(value: Any, _depth: int) -> Any:
    return value


def _text(value: str, _depth: int) -> Any:
    if not _is_unicode(value):
        raise _Refused(_SURROGATE)
    return value


def _integer(value: int, _depth: int) -> Any:
    return value if -_MAX_INTEGER < value < _MAX_INTEGER else {"$int": hex(value)}


def _float(value: float, _depth: int) -> Any:
    if not isfinite(value):
        raise _Refused(f"the float {value!r} cannot be stored; store None or text instead")
    return value


def _pack_decimal(value: Decimal) -> str:
    if value.is_nan():
        raise _Refused(
            "a Decimal that is not a number cannot be stored; store None or text instead"
        )
    return str(value)


def _unpack_decimal(content: Any) -> Decimal:
    value = Decimal(content)
    if value.is_nan():
        raise ValueError(f"a Decimal that is not a number: {value}")
    return value


def _pack_moment(value: datetime | time) -> Any:
    """Return the ISO text of a time; if fold or zone would be lost, a list with naive text."""
    zone = value.tzinfo
    if not value.fold and (zone is None or zone is UTC):
        return value.isoformat()
    naive = value.replace(tzinfo=None, fold=0).isoformat()
    return [naive, value.fold, _pack_zone(value)]


def _pack_zone(value: datetime | time) -> Any:
    zone: Any = value.tzinfo
    if zone is None:
        return None
    if type(zone) is timezone:
        offset, *names = zone.__getinitargs__()  # type: ignore[attr-defined] # a method for pickle
        return [offset, *names]
    zoneinfo = sys.modules.get("zoneinfo")
    if zoneinfo is not None and type(zone) is zoneinfo.ZoneInfo and zone.key is not None:
        return str(zone.key)
    raise _Refused(
        f"{_describe(value)} with a time zone of the type {_type_name(type(zone))} cannot be "
        "stored; convert it to UTC: value.astimezone(datetime.timezone.utc)"
    )


def _unpack_moment(kind: type[Any]) -> Callable[[Any], Any]:
    def unpack(content: Any) -> Any:
        if isinstance(content, str):
            return kind.fromisoformat(content)
        text, fold, zone = content
        if isinstance(zone, str):
            from zoneinfo import ZoneInfo  # noqa: PLC0415 - rarely needed

            zone = ZoneInfo(zone)
        elif zone is not None:
            zone = timezone(*zone)
        return kind.fromisoformat(text).replace(tzinfo=zone, fold=fold)

    return unpack


_FORMS = (
    Form("bytes", bytes, lambda data: b64encode(data).decode(), b64decode),
    Form("datetime", datetime, _pack_moment, _unpack_moment(datetime)),
    Form("date", date, date.isoformat, date.fromisoformat),
    Form("time", time, _pack_moment, _unpack_moment(time)),
    Form(
        "timedelta",
        timedelta,
        lambda span: [span.days, span.seconds, span.microseconds],
        lambda parts: timedelta(*parts),
    ),
    Form("decimal", Decimal, _pack_decimal, _unpack_decimal),
    Form("uuid", UUID, str, UUID),
)
_UNPACK: dict[str, Callable[[Any], Any]] = {
    "$int": lambda digits: int(digits, 16),
    "$tuple": tuple,
    "$set": set,
    "$frozenset": frozenset,
}


# --- Types --------------------------------------------------------------------------------------


def _check_same(value: Any, back: Any) -> None:
    """Raise _Refused if a part of a typed value decodes to an equal value of another type.

    An example is 1 in a field that is declared as ``float``.
    """
    if type(back) is not type(value):
        raise _Refused(
            f"{_describe(value)} would decode to the type {_type_name(type(back))}, as which it is "
            f"declared; store a {_type_name(type(back))}, or declare it as "
            f"{_type_name(type(value))}"
        )
    # Python compares times in UTC, so their UTC offsets can differ.
    if isinstance(value, datetime | time) and value.utcoffset() != back.utcoffset():
        raise _Refused(
            f"{_describe(value)} would decode with another UTC offset; store one whose "
            "offset is in whole minutes"
        )
    for part, item, other in _pair_parts(value, back):
        try:
            _check_same(item, other)
        except _Refused as refused:
            refused.parts.append(part)
            raise


def _pair_parts(value: Any, back: Any) -> Iterable[tuple[str, Any, Any]]:
    """Yield the parts of two values of the same type, with their names for error messages."""
    if isinstance(value, dict):
        yield from (("{…}", *keys) for keys in zip(value, back, strict=False))
        yield from ((f"[{_shorten_key(key)}]", value[key], back.get(key)) for key in value)
    elif isinstance(value, set | frozenset):
        known = {item: item for item in back}
        yield from (("{…}", item, known.get(item)) for item in value)
    elif isinstance(value, list | tuple):
        pairs = enumerate(zip(value, back, strict=False))
        yield from ((f"[{place}]", *pair) for place, pair in pairs)
    else:
        for name in _field_names(type(value)):
            yield f".{name}", getattr(value, name, None), getattr(back, name, None)
        extra = getattr(value, "__pydantic_extra__", None) or {}
        yield from ((f".{name}", item, getattr(back, name, None)) for name, item in extra.items())


def _field_names(kind: Any) -> tuple[str, ...]:
    """Return the names of the fields of a Struct, dataclass, pydantic model or attrs class."""
    for attribute in ("__struct_fields__", "__dataclass_fields__", "model_fields"):
        if names := getattr(kind, attribute, ()):
            return tuple(names)
    return tuple(field.name for field in getattr(kind, "__attrs_attrs__", ()))


def _pydantic(kind: Any) -> Any:
    """Return pydantic's adapter for a type that contains a model; None for other types."""
    pydantic = sys.modules.get("pydantic")
    if pydantic is None or not _has_model(kind, pydantic.BaseModel):
        return None
    return _adapter(kind)


def _has_model(kind: Any, model: type) -> bool:
    if isinstance(kind, type) and issubclass(kind, model):
        return True
    return any(_has_model(part, model) for part in get_args(kind))


@lru_cache(maxsize=256)
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter  # noqa: PLC0415 - already imported by the application

    return TypeAdapter(kind)


@lru_cache(maxsize=1)
def _by_name_arguments() -> Mapping[str, bool]:
    """Return the arguments with which pydantic reads fields by name instead of alias."""
    from pydantic import VERSION  # noqa: PLC0415 - already imported by the application

    is_able = tuple(map(int, VERSION.split(".")[:2])) >= (2, 11)
    return {"by_name": True, "by_alias": False} if is_able else {}


_default = Codec()
encode: Callable[..., bytes] = _default.encode
decode: Callable[..., Any] = _default.decode
