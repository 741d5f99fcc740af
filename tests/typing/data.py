"""Data: what its methods return, and what memoizing a function leaves of its type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_type

from upstash_middleware import Data, SyncData
from upstash_middleware.django import async_data as of_django_async
from upstash_middleware.django import data as of_django
from upstash_middleware.flask import data as of_flask

data = Data(url="https://x.example", token="t", prefix="shop")
threads = SyncData(kind="reports", data_l1_bytes=1_000_000)
assert_type(of_flask, SyncData)
assert_type(of_django, SyncData)
assert_type(of_django_async, Data)


@dataclass
class Product:
    id: int


def load() -> Product:
    return Product(7)


async def load_later() -> Product:
    return Product(7)


def tags_of(product_id: int) -> list[str]:
    return [f"product:{product_id}"]


def key_of(self: Shop) -> str:
    return f"shop:{self.id}"


@threads.memoize(60, tags=tags_of)
def price(product_id: int, currency: str = "EUR") -> float:
    return 1.5 * product_id


class Shop:
    id = 7

    @data.memoize("1 minute", key=key_of, stale=60)
    async def products(self, category: str) -> list[str]:
        return [category]


async def calls() -> None:
    assert_type(await data.get("a", type=Product), Product | None)
    assert_type(await data.get("a", 0, type=Product), Product | int)
    assert_type(await data.set("a", Product(7), ttl=60, tags=["x"], type=Product), bool)
    assert_type(await data.incr("a", ttl="1 day"), int | None)
    assert_type(await data.get_or_set("a", 60, load_later, stale=60), Product)
    assert_type(await data.get_or_set("a", 60, load), Product)
    assert_type(await Shop().products("cups"), list[str])
    await data.set("a", 1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await data.set("a", 1, ttl=60, tag="x")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def calls_in_threads() -> None:
    assert_type(threads.get("a", type=Product), Product | None)
    assert_type(threads.get_or_set("a", 60, load, lock=False), Product)
    assert_type(price(7), float)
    assert_type(price.key_of(7, currency="USD"), str)
    price("7")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with SyncData() as own:
        assert_type(own, SyncData)
