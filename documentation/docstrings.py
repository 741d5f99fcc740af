"""What the code says of a public name: its signature as it is written, and its docstring's parts.

The code is read, not run, so that types and defaults are shown as they are written.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from inspect import isroutine
from textwrap import dedent
from types import MethodType
from typing import TYPE_CHECKING, Any, Final

from griffe import Class, Function, GriffeLoader, Parser
from msgspec import Struct

from documentation.site import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from griffe import Docstring, Object, Parameters

SOURCE: Final = ROOT / "src"
_LITERAL: Final = re.compile(r"(.*)::\n\n((?:    .*\n|\n)+(?:    .*)?)")
"""A block of code after ``::``, indented."""
_CONSTANT: Final = re.compile(r"\b_[A-Z][A-Z_]*\b")
_VARIADIC: Final = {"variadic positional": "*", "variadic keyword": "**"}


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter, or the field of a value."""

    name: str
    annotation: str
    default: str | None
    meaning: str
    kind: str = "positional or keyword"

    @property
    def shown_name(self) -> str:
        return _VARIADIC.get(self.kind, "") + self.name


@dataclass(frozen=True, slots=True)
class Description:
    """The parts of a docstring."""

    text: str = ""
    parameters: dict[str, str] = field(default_factory=dict)
    returns: str = ""
    raises: tuple[tuple[str, str], ...] = ()


def file_of(value: Any) -> Path:
    """Return the file that defines a public name, below src/."""
    found = _found(value).filepath
    assert not isinstance(found, list)
    return found.relative_to(SOURCE)


def described(value: Any) -> Description:
    """Return what the docstring of a class, function or decorator says."""
    return _parsed(_found(value).docstring)


def parameters_of(value: Any) -> list[Parameter]:
    """Return the parameters of a function, or of a class or decorator when it is called."""
    if isinstance(value, type):
        return _fields_of(value) if issubclass(value, Struct) else _of_class(value)
    function = _found(value if isroutine(value) else type(value).__call__)
    assert isinstance(function, Function)
    return _parameters(function, _parsed(function.docstring).parameters)


def returned_by(value: Any) -> str:
    """Return the annotation of what a function returns."""
    function: Any = _found(value if isroutine(value) else type(value).__call__)
    if str(getattr(function, "returns", None)) == "L":  # as each maker of limits has it
        function = _found(vars(type(value))["_limit"])
    return str(getattr(function, "returns", None) or "")


def is_async(value: Any) -> bool:
    return "async" in _found(value).labels


def plain(text: str) -> str:
    """Return the text of a docstring in Markdown."""
    return _LITERAL.sub(_fenced, text).replace("``", "`").replace("\0", "`" * 3)


def _fenced(found: re.Match[str]) -> str:
    before = f"{found[1]}:\n\n" if found[1].strip() else ""
    return f"{before}\0text\n{dedent(found[2]).strip()}\n\0\n\n"


def _of_class(value: type[Any]) -> list[Parameter]:
    meanings: dict[str, str] = {}
    found = None
    for base in value.__mro__:
        if not base.__module__.startswith("upstash_middleware"):
            continue
        made = _found(base)
        assert isinstance(made, Class)
        init = made.members.get("__init__")
        for documented in (made, init):
            if documented is not None:
                meanings = {**_parsed(documented.docstring).parameters, **meanings}
        if found is None and isinstance(init, Function):
            found = init
    return [] if found is None else _parameters(found, meanings)


def _fields_of(value: type[Struct]) -> list[Parameter]:
    found: dict[str, Parameter] = {}
    meanings: dict[str, str] = {}
    for base in reversed(value.__mro__):
        if not base.__module__.startswith("upstash_middleware"):
            continue
        made = _found(base)
        meanings |= _parsed(made.docstring).parameters
        for name, member in made.members.items():
            annotation = getattr(member, "annotation", None)
            if name not in value.__struct_fields__ or annotation is None:
                continue
            meaning = _joined(member.docstring.value) if member.docstring else ""
            default = getattr(member, "value", None)
            found[name] = Parameter(
                name, str(annotation), None if default is None else _default(default, made), meaning
            )
    return [
        Parameter(
            name,
            found[name].annotation,
            found[name].default,
            meanings.get(name) or found[name].meaning,
        )
        for name in value.__struct_fields__
        if name in found
    ]


def _default(value: Any, of: Object) -> str:
    """Return a default as it is written, with the values of private constants."""
    text = str(value)
    if _CONSTANT.search(text):
        return repr(eval(text, vars(import_module(of.module.path))))  # noqa: S307 - this package's
    factory = re.fullmatch(r"field\(default_factory=(?:lambda: )?(.+)\)", text)
    if factory is None:
        return text
    return factory[1] if factory[1].endswith(")") else f"{factory[1]}()"


def _parameters(function: Function, meanings: dict[str, str]) -> list[Parameter]:
    shown: Parameters = function.parameters
    return [
        Parameter(
            each.name,
            str(each.annotation or ""),
            None
            if each.default is None or "variadic" in str(each.kind)
            else _default(each.default, function),
            meanings.get(each.name, ""),
            each.kind.value if each.kind else "positional or keyword",
        )
        for each in shown
        if each.name not in {"self", "cls"}
    ]


@cache
def _loaded() -> GriffeLoader:
    loader = GriffeLoader(search_paths=[SOURCE], docstring_parser=Parser.google)
    loader.load("upstash_middleware")
    return loader


def _found(value: Any) -> Object:
    if not isinstance(value, type) and not isroutine(value):
        value = type(value)
    elif isinstance(value, MethodType):
        value = value.__func__
    # FastAPI's dependencies have a qualified name that is a message for those who decorate by them.
    name = value.__name__ if " " in value.__qualname__ else value.__qualname__
    found = _loaded().modules_collection[f"{value.__module__}.{name}"]
    target: Object = found.final_target if found.is_alias else found
    return target


def _parsed(docstring: Docstring | None) -> Description:
    if docstring is None:
        return Description()
    texts: list[str] = []
    parameters: dict[str, str] = {}
    returns, raises = "", list[tuple[str, str]]()
    for section in docstring.parse(Parser.google, warn_unknown_params=False, warnings=False):
        match section.kind.value:
            case "text":
                texts.append(plain(section.value))
            case "parameters":
                for each in section.value:
                    parameters[each.name.lstrip("*")] = _joined(each.description)
            case "raises":
                raises += [
                    (str(each.annotation), _joined(each.description)) for each in section.value
                ]
            case "returns":
                returns = " ".join(_joined(each.description) for each in section.value)
            case _:
                texts.append(plain(str(section.value)))
    return Description("\n\n".join(texts), parameters, returns, tuple(raises))


def _joined(text: str) -> str:
    return plain(" ".join(text.split()))
