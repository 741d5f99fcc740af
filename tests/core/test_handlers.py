"""What a handler is called, whatever it is: the name under which a limit before it counts."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upstash_middleware import RateLimitRule
from upstash_middleware.decorators import (
    MAX_NAME_LENGTH,
    exempt,
    handler_name,
    identity,
    is_exempt,
    owner_of,
)


def handler(_request: object) -> None:
    """Stand for a view."""


class Base:
    """Stand for a class of views."""

    def get(self) -> None:
        """Stand for its method."""


class Other(Base):
    """Stand for another class, which inherits it."""


def test_a_function_is_called_by_its_module_and_qualified_name():
    assert handler_name(handler) == f"{__name__}.handler"


def test_a_method_is_called_by_the_class_on_whose_object_it_is_called():
    assert owner_of(Base.get, (Other(),)) is Other
    assert handler_name(Base.get, Other) == f"{__name__}.Other.get"
    assert handler_name(Other().get) == f"{__name__}.Other.get"


def test_what_django_makes_of_a_method_is_that_method_of_that_class():
    made = functools.wraps(Base.get)(functools.partial(Other().get))
    assert handler_name(made) == f"{__name__}.Other.get"
    again = functools.wraps(Base.get)(functools.partial(Other().get))
    assert identity(made) == identity(again) != identity(functools.partial(Base().get))


def test_a_plain_function_has_no_owner_whatever_it_is_called_with():
    assert owner_of(handler, ("text",)) is None
    assert owner_of(handler, ()) is None


def test_a_function_that_a_framework_has_renamed_is_called_by_its_new_name():
    def view() -> None:
        """Stand for what ``as_view`` makes."""

    view.__name__ = "user_list"
    assert handler_name(view) == f"{__name__}.user_list"


def test_a_wrapper_is_the_handler_that_it_wraps():
    @functools.wraps(handler)
    def wrapper(request: object) -> None:
        handler(request)

    assert handler_name(wrapper) == handler_name(handler)
    assert identity(wrapper) is identity(handler)


@given(st.text(min_size=1, max_size=200))
def test_every_name_can_stand_in_a_rule(name: str):
    def view() -> None:
        """Be renamed."""

    view.__name__ = view.__qualname__ = name
    made = handler_name(view)
    assert len(made) <= MAX_NAME_LENGTH
    assert RateLimitRule(limits="1/s", name=made).name == made


def test_long_names_that_differ_anywhere_stay_different():
    names = set()
    for letter in "ab":

        def view() -> None:
            """Be renamed."""

        view.__qualname__ = letter + "." + "x" * 100 + ".view"
        view.__name__ = "view"
        names.add(handler_name(view))
    assert len(names) == 2


@pytest.mark.parametrize("outside", [True, False])
def test_an_exempt_handler_stays_exempt_inside_wrappers(outside: bool):
    def view() -> None:
        """Be marked."""

    @functools.wraps(view, updated=())  # a wrapper that takes no marks along
    def wrapper() -> None:
        view()

    exempt(wrapper if outside else view)
    assert is_exempt(wrapper)
    assert is_exempt(view) is not outside


def test_nothing_is_exempt_by_accident():
    things: list[Any] = [handler, Base, Base().get, None, functools.partial(handler)]
    assert not any(is_exempt(thing) for thing in things)
