"""Values as bytes: each comes back equal and of the same type, or is refused."""

from __future__ import annotations

import collections
import dataclasses
import enum
import math
import time as clock
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import pydantic
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from upstash_middleware import NotStorable, UpstashMiddlewareError
from upstash_middleware.core.values import MAX_DEPTH, Codec, Form, Unreadable, decode, encode


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal and of the same type, in every part."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, set | frozenset):
        pairs = {item: item for item in other}
        return one == other and all(same(item, pairs[item]) for item in one)
    if isinstance(one, float):
        return one == other and math.copysign(1, one) == math.copysign(1, other)
    if isinstance(one, datetime | time):
        zone, its = one.tzinfo, other.tzinfo
        fold = one.fold == other.fold and type(zone) is type(its) and str(zone) == str(its)
        return fold and bool(one.replace(tzinfo=None) == other.replace(tzinfo=None))
    if isinstance(one, Decimal):
        return bool(one.as_tuple() == other.as_tuple())
    return bool(one == other)


class Color(enum.IntEnum):
    RED = 1


class Name(str):
    __slots__ = ()


Point = collections.namedtuple("Point", "x y")  # noqa: PYI024 - as applications have them


class OwnZone(tzinfo):
    def utcoffset(self, _moment):
        return timedelta(hours=1)

    def dst(self, _moment):
        return None

    def tzname(self, _moment):
        return None


ZONES = st.one_of(
    st.none(),
    st.just(UTC),
    st.timezones(),
    st.builds(
        timezone,
        st.timedeltas(timedelta(hours=-23), timedelta(hours=23)),
        st.text(max_size=3) | st.just("é"),
    ),
    st.builds(timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23))),
)
HASHABLE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers().map(lambda number: number**19),
    st.floats(),
    st.text(st.characters(exclude_categories=())),
    st.binary(),
    st.datetimes(timezones=ZONES, allow_imaginary=True),
    st.builds(
        lambda moment, fold: moment.replace(fold=fold), st.datetimes(), st.sampled_from([0, 1])
    ),
    st.dates(),
    st.times(timezones=ZONES),
    st.timedeltas(),
    st.decimals(allow_nan=False),
    st.uuids(),
    st.sampled_from([Color.RED, Name("x"), Point(1, 2), datetime(2026, 1, 1, tzinfo=OwnZone())]),
)
NAMES = st.text(st.characters(exclude_categories=())) | st.sampled_from(
    ["$", "$$", "$date", "$$date", "$tuple", "$set", "$int", "$bytes"]
)
VALUES = st.recursive(
    HASHABLE | st.decimals(),
    lambda inside: st.one_of(
        st.lists(inside),
        st.lists(inside).map(tuple),
        st.dictionaries(NAMES, inside),
        st.dictionaries(st.integers() | st.none(), inside, max_size=2),
        st.sets(HASHABLE),
        st.frozensets(HASHABLE),
        st.dictionaries(NAMES, inside).map(collections.OrderedDict),
    ),
)


@given(VALUES)
@example({"$date": {"$date": "2026-01-31"}})
@example([-0.0, True, 1, 1.0, {"a": 0}])
@example([10**4298, -(10**4299), 10**5000, 2**64, -(2**64)])
@example(datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")))
@example({"$tuple": [1]})
@example([{"\ud800": 1}])
@example(["\ud800"])
def test_any_value_comes_back_equal_and_of_the_same_type_or_is_refused(value):
    try:
        data = encode(value)
    except NotStorable:
        return
    assert same(decode(data), value)


@pytest.mark.parametrize(
    "value",
    [
        {"user": {"id": 7, "name": "Zoë", "tags": ["a", "b"], "score": 1.5, "none": None}},
        [1, True, -0.0, 1e300, "", []],
        {"at": datetime(2026, 1, 31, 12, tzinfo=UTC), "for": timedelta(days=-1, microseconds=3)},
        (date(2026, 1, 31), time(1, 2, 3, 4), Decimal("1.10"), UUID(int=7), b"\x00\xff"),
        {"set": {1, 2}, "frozen": frozenset({("a", 1)})},
        datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")),
        time(1, 2, tzinfo=timezone(timedelta(hours=1), "CET"), fold=1),
        2**64,
        {"huge": 10**10_000},
        Decimal("Infinity"),
    ],
)
def test_what_applications_store_is_not_refused(value):
    assert same(decode(encode(value)), value)


def test_what_json_has_is_plain_json():
    """So that Redis counts with integers, and other languages read the rest."""
    assert encode(12) == b"12"
    assert encode({"a": ["b", 1.5, None, True]}) == b'{"a":["b",1.5,null,true]}'


def test_equal_sets_are_equal_bytes():
    """What was read and is written again unchanged is seen to be unchanged."""
    words = [f"word {number}" for number in range(100)]
    assert encode(set(words)) == encode({*words[50:], *words[:50]})
    assert encode(decode(encode(set(words)))) == encode(set(words))


class Opaque:
    pass


def deep(levels: int) -> object:
    value: object = 1
    for _ in range(levels):
        value = [value]
    return value


def cyclic() -> object:
    value: dict[str, object] = {}
    value["self"] = value
    return value


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"a": [1, 2, {3}, Color.RED]}, ["value['a'][3]", "Color", ".value"]),
        ([Point(1, 2)], ["value[0]", "Point", "tuple(value)"]),
        ({"a": collections.OrderedDict()}, ["value['a']", "OrderedDict", "dict(value)"]),
        ((Name("x"),), ["value[0]", "Name", "str(value)"]),
        ([{"a": math.nan}], ["value[0]['a']", "nan", "None"]),
        (math.inf, ["value:", "inf"]),
        (Decimal("sNaN"), ["value:", "Decimal"]),
        ({"a": {1: 2}}, ["value['a']", "the key 1", "text"]),
        (["\udfff"], ["value[0]", "surrogate"]),
        ({"\udfff": 1}, ["value:", "surrogate"]),
        (bytearray(b"x"), ["bytearray", "bytes(value)"]),
        (datetime(2026, 1, 1, tzinfo=OwnZone()), ["OwnZone", "timezone.utc"]),
        ({"a": Opaque()}, ["value['a']", "test_values.Opaque"]),
        (range(3), ["range", "list(value)"]),
        (deep(MAX_DEPTH + 1), ["value[0]", "levels deep"]),
        (deep(100_000), ["value[0]", "levels deep"]),
        (cyclic(), ["value['self']", "contains itself"]),
        ({"a": {frozenset({1j})}}, ["value['a']", "complex"]),
    ],
)
def test_a_refusal_says_where_what_and_what_to_store_instead(value, words):
    with pytest.raises(NotStorable) as refusal:
        encode(value)
    assert all(word in str(refusal.value) for word in words), str(refusal.value)
    assert isinstance(refusal.value, UpstashMiddlewareError)
    assert isinstance(refusal.value, TypeError)
    assert len(str(refusal.value)) < 400


def test_values_may_be_nested_as_deep_as_the_bound_says():
    assert decode(encode(deep(MAX_DEPTH))) == deep(MAX_DEPTH)
    value: object = date(2026, 1, 1)
    for _ in range(MAX_DEPTH):
        value = (value,)
    assert decode(encode(value)) == value


@given(st.binary())
@example(b'{"$date":"2026-02-31"}')
@example(b'{"$uuid":5}')
@example(b'{"$datetime":["2026-01-01T00:00",0,"../x"]}')
@example(b'{"$datetime":["2026-01-01T00:00",0,"Europe"]}')
@example(b'{"$unknown":1}')
@example(b'{"$set":[[]]}')
@example(b'{"$decimal":"x"}')
@example(b"[" * 100_000)
@example(b"1e999")
def test_bytes_that_are_no_value_are_unreadable(data):
    with suppress(Unreadable):
        decode(data)


class Text(str):
    __slots__ = ()


def test_a_codec_can_have_forms_for_more_types():
    """Django's safe text has one, without the core knowing it."""
    codec = Codec([Form("safe", Text, str, Text)])
    value = {"html": [Text("<b>"), "<b>"], "$safe": {"$safe": "x"}}
    assert same(codec.decode(codec.encode(value)), value)
    with pytest.raises(NotStorable, match="Text"):
        encode(value)
    with pytest.raises(Unreadable):
        decode(codec.encode(Text("x")))


# --- Typed values -------------------------------------------------------------------------------


@dataclasses.dataclass
class Product:
    id: int
    price: Decimal
    tags: set[str] = dataclasses.field(default_factory=set)
    at: datetime | None = None
    color: Color = Color.RED


class Basket(msgspec.Struct):
    products: list[Product]
    by_id: dict[int, str] = {}
    key: bytes = b""


class Model(pydantic.BaseModel):
    id: UUID
    at: datetime
    part: dict[str, tuple[int, ...]] = {}
    size: float = 1.0


PRODUCT = Product(7, Decimal("1.10"), {"a", "b"}, datetime(2026, 1, 31, tzinfo=UTC))
MODEL = Model(id=UUID(int=7), at=datetime(2026, 1, 31, tzinfo=UTC), part={"$tuple": (1, 2)})


class Opening(pydantic.BaseModel):
    at: time


class Aliased(pydantic.BaseModel):
    """A model each of whose fields has the alias of the other."""

    first: int = pydantic.Field(alias="second")
    second: str = pydantic.Field(alias="first")


ALIASED = Aliased(second=1, first="a")

LEAVES: dict[Any, Any] = {
    bool: st.booleans(),
    int: st.integers(),
    float: st.floats(allow_nan=False, allow_infinity=False) | st.integers(-5, 5),
    str: st.text(max_size=5),
    bytes: st.binary(max_size=5),
    datetime: st.datetimes(timezones=ZONES),
    date: st.dates(),
    time: st.times(timezones=ZONES),
    timedelta: st.timedeltas(),
    Decimal: st.decimals(allow_nan=False) | st.integers(-5, 5),
    UUID: st.uuids(),
    Color: st.just(Color.RED),
    Any: VALUES,
}
WRONG = st.one_of(HASHABLE, st.lists(st.integers(0, 1), max_size=2), st.booleans().map(Decimal))


def dataclass_of(fields: dict[str, Any]) -> tuple[Any, Any]:
    made = dataclasses.make_dataclass("Made", fields.items())
    return made, made


def struct_of(fields: dict[str, Any]) -> tuple[Any, Any]:
    made = msgspec.defstruct("Made", list(fields.items()), rename="camel")
    return made, made


def model_of(fields: dict[str, Any], aliases: list[str] | None = None) -> tuple[Any, Any]:
    """Return a model, and what makes one without validating its fields."""
    named = zip(fields.items(), aliases or fields, strict=True)
    given: Any = {name: (kind, pydantic.Field(alias=alias)) for (name, kind), alias in named}
    made = pydantic.create_model("Made", **given)
    names = dict(zip(fields, aliases or fields, strict=True))
    return made, lambda **values: made.model_construct(
        **{names[name]: value for name, value in values.items()}
    )


def aliased_model_of(fields: dict[str, Any]) -> tuple[Any, Any]:
    return model_of(fields, [*fields][::-1])


MAKERS = [dataclass_of, struct_of, model_of, aliased_model_of]


@st.composite
def types(draw: Any, makers: Any = None, levels: int = 3) -> tuple[Any, Any]:
    """Return a type, and a strategy of its values, some of which are not quite of that type."""
    makers = makers or draw(st.sampled_from([MAKERS[:2], [dataclass_of, *MAKERS[2:]]]))
    shape = draw(st.sampled_from(["leaf", "class", "class", "list", "tuple", "set", "dict", "?"]))
    if levels == 0 or shape == "leaf":
        leaf = draw(st.sampled_from([*LEAVES, float, float, float]))
        return leaf, LEAVES[leaf]
    if shape == "class":
        inside = [draw(types(makers, levels - 1)) for _ in range(draw(st.integers(1, 3)))]
        names = ["one", "two_three", "four"][: len(inside)]
        fields = {name: kind for name, (kind, _) in zip(names, inside, strict=True)}
        made, make = draw(st.sampled_from(makers))(fields)
        values = {name: each for name, (_, each) in zip(names, inside, strict=True)}
        if draw(st.integers(0, 3)) == 0:
            values[names[0]] |= WRONG
        return made, st.builds(make, **values)
    kind: Any
    kind, value = draw(types(makers, levels - 1))
    if shape == "list":
        return list[kind], st.lists(value, max_size=2)
    if shape == "tuple":
        return tuple[kind, ...], st.lists(value, max_size=2).map(tuple)
    if shape == "dict":
        return dict[str, kind], st.dictionaries(NAMES, value, max_size=2)
    if shape == "set" and kind in LEAVES:
        return set[kind], st.sets(LEAVES[kind].filter(is_hashable), max_size=3)
    return kind | None, st.none() | value


def is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def same_parts(one: Any, other: Any, *, in_model: bool = False) -> bool:
    """Do the same as ``same``, also in fields."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        one, other = list(one.items()), list(other.items())
    if isinstance(one, list | tuple):
        pairs = zip(one, other, strict=False)
        parts = (same_parts(*pair, in_model=in_model) for pair in pairs)
        return len(one) == len(other) and all(parts)
    is_model = isinstance(one, pydantic.BaseModel)
    if is_model or hasattr(one, "__struct_fields__") or dataclasses.is_dataclass(one):
        names: Any = type(one).model_fields if is_model else type(one).__annotations__
        parts = (
            same_parts(getattr(one, name), getattr(other, name), in_model=in_model or is_model)
            for name in names
        )
        return all(parts) and bool(one == other)
    if in_model and isinstance(one, datetime | time):  # pydantic has time zones of its own
        return bool(one == other and one.utcoffset() == other.utcoffset())
    return same(one, other)


@settings(max_examples=300)
@given(st.data(), types())
def test_any_typed_value_comes_back_equal_and_of_the_same_type_or_is_refused(data, made):
    kind, values = made
    value = data.draw(values)
    try:
        encoded = encode(value, kind)
    except NotStorable:
        return
    assert same_parts(decode(encoded, kind), value)


@pytest.mark.parametrize(
    ("value", "kind", "words"),
    [
        (Model(id=UUID(int=7), at=MODEL.at).model_copy(update={"size": 1}), Model, [".size"]),
        (Product(Color.RED, Decimal(1)), Product, ["value.id", "Color", "store a int"]),
        (Product(1, 2), Product, ["value.price", "int", "Decimal"]),  # type: ignore[arg-type] # on purpose
        ([1.0, 1], list[float], ["value[1]", "type int", "store a float"]),
        ({"a": {1}}, dict[str, set[float]], ["value['a']{…}", "float"]),
        ({Color.RED: 1}, dict[int, int], ["{…}", "Color"]),
        (
            Opening(at=time(8, tzinfo=timezone(timedelta(microseconds=1)))),
            Opening,
            ["value.at", "UTC offset", "whole minutes"],
        ),
    ],
)
def test_a_part_that_would_come_back_as_another_type_is_refused(value, kind, words):
    """A price of 10 would be 10 where it was loaded, and 10.0 where it was read."""
    with pytest.raises(NotStorable) as refusal:
        encode(value, kind)
    assert all(word in str(refusal.value) for word in words), str(refusal.value)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (PRODUCT, Product),
        (Basket([PRODUCT], {7: "seven"}, b"\xff"), Basket),
        ([PRODUCT, PRODUCT], list[Product]),
        ({"a": PRODUCT}, dict[str, Product]),
        (None, Product | None),
        (MODEL, Model),
        ([MODEL], list[Model]),
        (None, Model | None),
        (ALIASED, Aliased),
        ([ALIASED], list[Aliased]),
        ([Point(1, 2)], list[Point]),
        (7, int),
    ],
)
def test_a_typed_value_comes_back_as_its_type(value, kind):
    back = decode(encode(value, kind), kind)
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize(
    ("value", "kind", "words"),
    [
        ({"id": 7, "price": "1"}, Product, ["dict", "Product"]),
        ([{"id": 7, "price": "1"}], list[Product], ["Product"]),
        (PRODUCT, Model, ["Product"]),
        (MODEL, Product, ["Model"]),
        (
            Model(id=UUID(int=7), at=datetime(2026, 1, 31, tzinfo=UTC), size=math.nan),
            Model,
            ["value['size']"],
        ),
        (Product(7, Decimal("NaN")), Product, ["value['price']"]),
        (Opaque(), Product, ["Opaque"]),
    ],
)
def test_a_value_that_is_not_of_the_type_is_refused(value, kind, words):
    with pytest.raises(NotStorable) as refusal:
        encode(value, kind)
    assert all(word in str(refusal.value) for word in words), str(refusal.value)


@pytest.mark.parametrize("kind", [Product, Basket, Model, list[Model], int])
def test_a_stored_value_that_is_not_of_the_type_is_unreadable(kind):
    """As after a deployment that changed the type: it counts as a miss."""
    with pytest.raises(Unreadable):
        decode(encode({"other": "x"}), kind)


def test_encoding_and_decoding_take_linear_time():
    """Ten times the value takes about ten times as long; a hundred times would be quadratic."""

    def seconds(size: int, value: object) -> float:
        best = math.inf
        for _ in range(3):
            begun = clock.process_time()
            decode(encode([value] * size))
            best = min(best, clock.process_time() - begun)
        return best

    for value in ({"a": 1, "b": "text"}, (1, "a"), {"$a": date(2026, 1, 1)}, {"x", "y"}):
        assert seconds(30_000, value) < 40 * max(seconds(3_000, value), 0.001)
    huge = 10**300_000
    begun = clock.process_time()
    assert decode(encode(huge)) == huge
    assert clock.process_time() - begun < 1
