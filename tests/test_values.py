"""Value classes are what the standard library's dataclasses are, as far as both go."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import ClassVar

import pytest

from upstash_middleware import values
from upstash_middleware.values import dataclass, field, value


@dataclass(frozen=True, slots=True)
class Ours:
    """Has one of everything."""

    kind: ClassVar[str] = "limit"
    limit: int
    per: float = 1.0
    names: list[str] = field(default_factory=list)
    secret: str = field(default="", repr=False, compare=False)
    at: int = field(default=0, kw_only=True)


@dataclasses.dataclass(frozen=True, slots=True)
class Theirs:
    """The same, made by the standard library."""

    kind: ClassVar[str] = "limit"
    limit: int
    per: float = 1.0
    names: list[str] = dataclasses.field(default_factory=list)
    secret: str = dataclasses.field(default="", repr=False, compare=False)
    at: int = dataclasses.field(default=0, kw_only=True)


@dataclass(slots=True)
class Open:
    """May be changed."""

    one: int = 1


@value(frozen=True, slots=True)
class Quick:
    """May be changed, but for the type checker."""

    one: int = 1


@dataclass(frozen=True)
class Roomy:
    """Has a dictionary, and works something out."""

    one: int
    two: int = field(init=False)
    three: int = field(default=3, init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "two", 2 * self.one)


class TestBesideTheStandardLibrary:
    """One and the same is said of both classes."""

    @pytest.mark.parametrize("arguments", [(5,), (5, 2.0), (5, 2.0, ["a"], "x")])
    def test_values_look_the_same(self, arguments):
        ours, theirs = Ours(*arguments, at=3), Theirs(*arguments, at=3)
        assert repr(ours) == repr(theirs).replace("Theirs", "Ours")
        assert dataclasses.asdict(ours) == dataclasses.asdict(theirs)
        assert Ours.__match_args__ == Theirs.__match_args__
        assert Ours.kind == Theirs.kind
        assert Ours.__doc__ == "Has one of everything."

    @pytest.mark.parametrize("made", [Ours, Theirs])
    def test_they_are_equal_by_what_is_compared(self, made):
        assert made(1, names=["a"]) == made(1, names=["a"], secret="other")
        assert made(1) != made(2)
        assert made(1) != (1, 1.0, [], 0)

    @pytest.mark.parametrize("made", [Ours, Theirs])
    def test_they_refuse_to_be_changed(self, made):
        one = made(1)
        with pytest.raises(dataclasses.FrozenInstanceError):
            one.limit = 2
        with pytest.raises(dataclasses.FrozenInstanceError):
            del one.limit
        assert one.limit == 1

    @pytest.mark.parametrize(
        ("replaced", "made"),
        [(values.replace, Ours), (dataclasses.replace, Ours), (dataclasses.replace, Theirs)],
    )
    def test_either_replace_takes_them(self, replaced, made):
        changed = replaced(made(1, names=["a"], secret="s"), per=9.0)
        assert (changed.limit, changed.per, changed.names, changed.secret) == (1, 9.0, ["a"], "s")

    @pytest.mark.parametrize("made", [Ours, Theirs])
    def test_each_value_has_a_list_of_its_own(self, made):
        one, two = made(1), made(1)
        one.names.append("a")
        assert two.names == []

    @pytest.mark.parametrize("made", [Ours, Theirs])
    def test_what_is_missing_or_too_much_is_an_error(self, made):
        with pytest.raises(TypeError, match="limit"):
            made()
        with pytest.raises(TypeError, match="positional"):
            made(1, 2.0, [], "", 5)

    @pytest.mark.parametrize("made", [Ours, Theirs])
    def test_they_can_be_copied(self, made):
        one = made(1, names=["a"], at=7)
        assert copy.copy(one) == copy.deepcopy(one) == pickle.loads(pickle.dumps(one)) == one


def test_the_frozen_are_hashed_by_their_fields_and_the_others_not_at_all():
    assert hash(Quick(1)) == hash(Quick(1))
    assert len({Quick(1), Quick(1), Quick(2)}) == 2
    with pytest.raises(TypeError):
        hash(Open())


def test_a_field_that_cannot_be_hashed_may_be_compared_all_the_same():
    @dataclass(frozen=True, slots=True)
    class Rule:
        name: str
        by_status: dict[int, float] = field(default_factory=dict, hash=False)

    assert hash(Rule("a", {404: 1.0})) == hash(Rule("a"))
    assert Rule("a", {404: 1.0}) != Rule("a")


def test_what_only_the_type_checker_guards_can_be_set():
    one = Quick(1)
    one.one = 2  # type: ignore[misc]
    assert one == Quick(2)


def test_what_init_does_not_take_is_worked_out_after_it():
    assert (Roomy(3).two, Roomy(3).three) == (6, 3)
    assert values.replace(Roomy(3), one=4).two == 8
    with pytest.raises(dataclasses.FrozenInstanceError):
        Roomy(3).two = 1  # type: ignore[misc]


def test_a_name_that_is_no_field_cannot_be_set_on_a_slotted_value():
    with pytest.raises(AttributeError):
        Open().another = 1  # type: ignore[attr-defined]


def test_the_fields_are_listed_in_order():
    assert [each.name for each in values.fields(Ours)] == ["limit", "per", "names", "secret", "at"]
