# mypy: disable-error-code="untyped-decorator"
"""Functions and methods whose results are kept."""

from __future__ import annotations

import asyncio
from datetime import date
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import pytest

from upstash_middleware import ConfigurationError, Data, NotStorable, SyncData

if TYPE_CHECKING:
    from collections.abc import Callable

    from upstash_middleware.local import LocalUpstash


def as_in_a_module(function: Callable[..., Any]) -> Any:
    """Return a function of a test as if it were outside of it."""
    function.__qualname__ = function.__name__
    return function


def test_a_function_is_called_once_for_each_of_its_arguments(data: Any, upstash: LocalUpstash):
    calls: list[Any] = []

    @data.memoize(60)
    @as_in_a_module
    def price(product: int, currency: str = "EUR", *more: Any, on: Any = None, **rest: Any) -> Any:
        """Return a price."""
        calls.append((product, currency, more, on, rest))
        return len(calls)

    assert price.__doc__ == "Return a price."
    assert price(7) == price(7, "EUR") == price(product=7, currency="EUR") == 1
    assert price("7") == price("7") == 2
    assert price(7.0) == 3
    assert price(True) == price(True) == 4
    assert price(7, "USD", date(2026, 1, 31), (1, 2), on={"a"}, x=1) == 5
    assert price(7, "USD", date(2026, 1, 31), (1, 2), x=1, on={"a"}) == 5
    assert len(calls) == 5
    upstash.advance(61)
    assert price(7) == 6


def test_a_key_may_be_given_by_some_of_the_arguments(data: Any):
    calls: list[Any] = []

    @data.memoize(
        60, key=lambda product: f"product:{product['id']}", tags=lambda product: [product["tag"]]
    )
    def load(session: object, product: dict[str, Any]) -> Any:
        calls.append(session)
        return product["id"]

    assert load(object(), {"id": 7, "tag": "x"}) == load(object(), {"id": 7, "tag": "x"}) == 7
    assert len(calls) == 1
    assert load.key_of(object(), {"id": 7}) == "product:7"
    assert data.get("product:7") == 7
    data.delete(load.key_of(None, {"id": 7}))
    load(object(), {"id": 7, "tag": "x"})
    data.purge(tags=["x"])
    load(object(), {"id": 7, "tag": "x"})
    assert len(calls) == 3


def test_a_key_may_be_text(data: Any):
    calls: list[int] = []

    @data.memoize("1 minute", key="settings", tags=["settings"], stale=60)
    def settings() -> dict[str, int]:
        calls.append(1)
        return {"size": 7}

    assert settings() == settings() == {"size": 7}
    assert len(calls) == 1
    assert settings.key_of() == "settings"


def test_a_template_is_refused_as_it_would_be_one_key_for_all(data: Any):
    def price(product: int) -> int:
        return product

    right = r'write key=lambda product: f"price:{product}"'
    with pytest.raises(ConfigurationError, match=right):
        data.memoize(60, key="price:{product}")(price)
    with pytest.raises(
        ConfigurationError, match=r'write tags=lambda product: \[f"p:{product.id}"\]'
    ):
        data.memoize(60, tags=["p", "p:{product.id}"])(price)


def test_a_method_needs_a_key(upstash: LocalUpstash):
    data = SyncData()
    advice = r'key=lambda self, size: f"load:{self.id}:{size}"'
    with pytest.raises(ConfigurationError, match=advice):

        class _Wrong:
            @data.memoize(60)
            def load(self, size: int) -> int:
                return size

    class Shop:
        def __init__(self, id_: int) -> None:
            self.id = id_

        @data.memoize(60, key=lambda self, size: f"shop:{self.id}:{size}")
        def load(self, size: int) -> list[int]:
            return [self.id, size]

        @staticmethod
        @data.memoize(60)
        @as_in_a_module
        def twice(size: int) -> int:
            return 2 * size

        @property
        @data.memoize(60, key=lambda self: f"name:{self.id}")
        def name(self) -> str:
            return f"shop {self.id}"

    assert Shop(1).load(5) == [1, 5]
    assert Shop(2).load(5) == [2, 5]
    assert data.get("shop:2:5") == [2, 5]
    assert Shop.twice(4) == Shop.twice(4) == 8
    assert Shop(3).name == "shop 3" == data.get("name:3")


def test_arguments_that_cannot_be_part_of_a_key_are_refused(data: Any):
    @data.memoize(60)
    @as_in_a_module
    def load(user: object) -> int:
        return 1

    advice = r'argument \'user\' .*key=lambda user: f"load:{user.id}"'
    with pytest.raises(NotStorable, match=advice):
        load(object())


def test_wrong_uses_are_refused_where_they_are_written(upstash: LocalUpstash):
    def generate() -> Any:
        yield 1

    async def later() -> int:
        return 1

    def now() -> int:
        return 1

    wrong: list[tuple[Any, Any, str]] = [
        (SyncData(), generate, "generator"),
        (SyncData(), later, "async; use Data"),
        (Data(), now, "not async; use SyncData"),
        (SyncData(), cast("Any", property)(now), "directly above the function"),
        (SyncData(), int, "directly above the function"),
    ]
    for data, function, words in wrong:
        with pytest.raises(ConfigurationError, match=words):
            data.memoize(60)(function)
    with pytest.raises(ConfigurationError, match="'other'"):
        SyncData().memoize(60, key=lambda other: other)(now)
    with pytest.raises(TypeError, match="unexpected keyword argument 'maxsize'"):
        SyncData().memoize(60, maxsize=1)  # type: ignore[call-arg]


def test_async_methods(upstash: LocalUpstash):
    async def main() -> None:
        async with Data() as data:

            class Shop:
                calls = 0

                @data.memoize(60, key=lambda size: f"size:{size}")
                async def load(self, size: int) -> int:
                    self.calls += 1
                    return size

            shop = Shop()
            assert [await shop.load(7), await shop.load(7)] == [7, 7]
            assert shop.calls == 1
            assert Shop.load.key_of(shop, 7) == "size:7"

    asyncio.run(main())


def test_typed_results(data: Any):
    calls: list[int] = []

    @data.memoize(60, type=list[int])
    @as_in_a_module
    def load() -> list[int]:
        calls.append(1)
        return [1]

    assert load() == load() == [1]
    assert len(calls) == 1


def test_a_function_whose_name_is_not_its_own_needs_a_key(data: Any):
    def of(region: str) -> Any:
        def price(product: int) -> str:
            return f"{region} {product}"

        return price

    program = as_in_a_module(of("eu"))
    program.__module__ = "__main__"
    for function in (of("eu"), program, lambda product: product):
        with pytest.raises(ConfigurationError, match=r'key=lambda product: f"\w+:{product}"'):
            data.memoize(60)(function)
    keyed = [
        data.memoize(60, key=lambda product, region=region: f"{region}:{product}")(of(region))
        for region in ("eu", "us")
    ]
    assert [price(7) for price in keyed] == ["eu 7", "us 7"]


def test_a_partial_needs_a_key(upstash: LocalUpstash):
    data = SyncData()
    with pytest.raises(ConfigurationError, match="has no name"):
        data.memoize(60)(partial(round, 2.5))
    assert data.memoize(60, key="rounded")(partial(round, 2.5))() == 2


def test_tags_may_be_given_by_an_iterator(data: Any):
    calls: list[int] = []

    @data.memoize(60, tags=iter(["x"]))
    @as_in_a_module
    def load(number: int) -> int:
        calls.append(number)
        return number

    for _ in range(2):
        assert [load(1), load(2)] == [1, 2]
        data.purge(tags=["x"])
    assert calls == [1, 2, 1, 2]
