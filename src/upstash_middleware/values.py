"""The package's value classes: what it uses of ``dataclasses``, at a fraction of the price.

Before a process serves its first request it makes some ninety of them. The standard library
compiles up to six functions for each, and to import it takes as long as the HTTP client. Here one
is compiled, ``__init__``; all else is shared. Type checkers see the standard library's own, and
its functions (``fields``, ``asdict``, ``replace``) take these values too.
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any

__all__ = ["dataclass", "field", "fields", "replace", "value"]

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from dataclasses import dataclass, field, fields, replace
    from dataclasses import dataclass as value
else:

    def dataclass(
        *, frozen: bool = False, slots: bool = False, eq: bool = True, kw_only: bool = False
    ) -> Callable[[type], type]:
        """Make a class's annotated names its fields, as the standard library does."""
        return lambda cls: _made(cls, frozen=frozen, slots=slots, eq=eq, kw_only=kw_only)

    def value(*, frozen: bool, slots: bool) -> Callable[[type], type]:
        """Make a class whose values only the type checker keeps from being changed.

        For what every request makes and the package alone sees: a field that is guarded takes
        several times as long to set. What users get is guarded in earnest.
        """
        return lambda cls: _made(cls, frozen=frozen, slots=slots, guarded=False)

    def field(**options: Any) -> Field:
        """Say of a field what its annotation cannot; see ``Field``."""
        return Field(**options)

    def fields(of: Any) -> tuple[Field, ...]:
        """Return the fields of a class, or of a value, in order."""
        return of.__value_fields__

    def replace(changed: Any, /, **changes: Any) -> Any:
        """Return a copy with some fields changed; what ``__init__`` does not take is made anew."""
        given = zip(changed.__value_given__, changed.__value_getter__(changed), strict=True)
        return changed.__class__(**{**dict(given), **changes})


class _Sentinel:
    """Stands for what was not given."""

    def __repr__(self) -> str:
        return "<factory>"  # as the standard library shows it, in a signature


_NONE: Any = _Sentinel()
# What each class has of its own, or has for its values to have a dictionary.
_OF_EACH_CLASS = frozenset({"__dict__", "__weakref__"})


class Field:
    """A field of a value class; the options are the standard library's."""

    __slots__ = ("compare", "default", "default_factory", "hash", "init", "kw_only", "name", "repr")

    def __init__(  # noqa: PLR0913
        self,
        *,
        default: Any = _NONE,
        default_factory: Any = _NONE,
        init: bool = True,
        repr: bool = True,  # noqa: A002
        compare: bool = True,
        hash: bool | None = None,  # noqa: A002
        kw_only: bool = False,
    ) -> None:
        self.name: str = ""
        self.default: Any = default
        self.default_factory: Any = default_factory
        self.init: bool = init
        self.repr: bool = repr
        self.compare: bool = compare
        self.hash: bool = compare if hash is None else hash
        self.kw_only: bool = kw_only


def _made(  # noqa: PLR0913 - the decorators' options
    cls: type,
    *,
    frozen: bool,
    slots: bool,
    eq: bool = True,
    kw_only: bool = False,
    guarded: bool = True,
) -> type:
    members = {name: each for name, each in vars(cls).items() if name not in _OF_EACH_CLASS}
    known = tuple(_fields(cls, members, kw_only=kw_only))
    if slots:
        members["__slots__"] = tuple(each.name for each in known)
    members["__value_fields__"] = known
    members["__dataclass_fields__"] = _ForTheStandardLibrary()
    members["__match_args__"] = tuple(e.name for e in known if e.init and not e.kw_only)
    members["__value_given__"] = given = [each.name for each in known if each.init]
    members["__value_getter__"] = staticmethod(_getter(given))
    members.setdefault("__repr__", _repr)
    if eq:
        members["__value_compared__"] = staticmethod(
            _getter([each.name for each in known if each.compare])
        )
        members["__value_hashed__"] = staticmethod(_getter([e.name for e in known if e.hash]))
        members.setdefault("__eq__", _eq)
        members.setdefault("__hash__", _hash if frozen else None)
    if frozen and guarded:
        members |= {"__setattr__": _refuse, "__delattr__": _refuse}
        members |= {"__getstate__": _state, "__setstate__": _restore}
    made: Any = type(cls)(cls.__name__, cls.__bases__, members)
    made.__qualname__ = cls.__qualname__
    made.__init__ = _NotYetCompiled(made, known, guarded=frozen and guarded)
    return made  # type: ignore[no-any-return]


class _NotYetCompiled:
    """Stands for a class's ``__init__`` until it is asked for: some are never called."""

    __slots__ = ("_guarded", "_known", "_made")

    def __init__(self, made: Any, known: Iterable[Field], *, guarded: bool) -> None:
        self._made = made
        self._known = known
        self._guarded = guarded

    def __get__(self, value: Any, _: object) -> Any:
        compiled = self._made.__init__ = _init(self._made, self._known, guarded=self._guarded)
        return compiled if value is None else compiled.__get__(value)


def _fields(cls: type, members: dict[str, Any], *, kw_only: bool) -> Iterator[Field]:
    """Take a class's fields out of its members."""
    for name, annotation in cls.__annotations__.items():
        if annotation.startswith("ClassVar"):
            continue
        given = members.pop(name, _NONE)
        each = given if isinstance(given, Field) else Field(default=given)
        each.name = name
        each.kw_only = each.kw_only or kw_only
        yield each


def _init(made: Any, known: Iterable[Field], *, guarded: bool) -> Any:
    """Compile a class's ``__init__``."""
    names: dict[str, Any] = {"_NONE": _NONE, "_set": object.__setattr__}
    parameters, only_by_name, body = ["self"], list[str](), list[str]()
    for each in known:
        parameter, given = _parameter(each, names)
        if each.init:
            (only_by_name if each.kw_only else parameters).append(parameter)
        elif given == each.name:  # without a default: it is for __post_init__
            continue
        body.append(f" {_assignment(made, each.name, given, names, guarded=guarded)}")
    if hasattr(made, "__post_init__"):
        body.append(" self.__post_init__()")
    if only_by_name:
        parameters += ["*", *only_by_name]
    lines = [f"def __init__({', '.join(parameters)}):", *(body or [" pass"])]
    exec("\n".join(lines), names)  # noqa: S102 - the names of fields, and nothing else, are in it
    names["__init__"].__qualname__ = f"{made.__qualname__}.__init__"
    annotations = {each.name: made.__annotations__[each.name] for each in known if each.init}
    names["__init__"].__annotations__ = {**annotations, "return": "None"}
    return names["__init__"]


def _parameter(each: Field, names: dict[str, Any]) -> tuple[str, str]:
    """Return a field's parameter, and what the field is set to."""
    name = each.name
    if each.default is not _NONE:
        names[f"_default_{name}"] = each.default
        return f"{name}=_default_{name}", name if each.init else f"_default_{name}"
    if each.default_factory is not _NONE:
        names[f"_make_{name}"] = each.default_factory
        made = f"_make_{name}()"
        return f"{name}=_NONE", f"{made} if {name} is _NONE else {name}" if each.init else made
    return name, name


def _assignment(made: Any, name: str, given: str, names: dict[str, Any], *, guarded: bool) -> str:
    if not guarded:
        return f"self.{name} = {given}"
    if name not in vars(made):  # no slot
        return f"_set(self, '{name}', {given})"
    names[f"_set_{name}"] = vars(made)[name].__set__
    return f"_set_{name}(self, {given})"


def _getter(names: list[str]) -> Callable[[Any], Any]:
    """Return what takes these fields of a value, all at once, as a tuple."""
    if len(names) > 1:
        return attrgetter(*names)
    return lambda value: tuple([getattr(value, name) for name in names])


def _eq(self: Any, other: Any) -> Any:
    if other.__class__ is not self.__class__:
        return NotImplemented
    compared = self.__value_compared__
    return compared(self) == compared(other)


def _hash(self: Any) -> int:
    return hash(self.__value_hashed__(self))


def _repr(self: Any) -> str:
    shown = (f"{e.name}={getattr(self, e.name)!r}" for e in self.__value_fields__ if e.repr)
    return f"{self.__class__.__qualname__}({', '.join(shown)})"


def _refuse(self: Any, name: str, *_: object) -> None:
    from dataclasses import FrozenInstanceError  # noqa: PLC0415 - nearly never

    raise FrozenInstanceError(f"{self.__class__.__qualname__}.{name} is not to be changed")


def _state(self: Any) -> list[Any]:
    return [getattr(self, each.name) for each in self.__value_fields__]


def _restore(self: Any, state: list[Any]) -> None:
    for each, was in zip(self.__value_fields__, state, strict=True):
        object.__setattr__(self, each.name, was)


_OPTIONS = ("init", "repr", "compare", "hash", "kw_only")


class _ForTheStandardLibrary:
    """The fields as ``dataclasses`` knows them, made where somebody asks."""

    def __get__(self, _: object, cls: Any) -> Mapping[str, Any]:
        import dataclasses  # noqa: PLC0415 - that is what takes long

        known = []
        for each in cls.__value_fields__:
            options = {name: getattr(each, name) for name in _OPTIONS}
            for name in ("default", "default_factory"):
                if (given := getattr(each, name)) is not _NONE:
                    options[name] = given
            known.append((each.name, cls.__annotations__[each.name], dataclasses.field(**options)))
        made: Any = dataclasses.make_dataclass(cls.__name__, known)
        return made.__dataclass_fields__  # type: ignore[no-any-return]
