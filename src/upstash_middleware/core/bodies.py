"""Reads one field from a request's body, which is a form or JSON.

A request must be counted by the value that its application reads, but parsers differ: in the
separators and line endings that they accept, in the meaning of escaped quotes and character sets,
and in which of several values they return. These readers therefore accept only bodies that all
parsers interpret in the same way, such as those of browsers and HTTP libraries. Other bodies raise
UnreadableBody. The work is linear in the length of the body.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus

if TYPE_CHECKING:
    from upstash_middleware.messages import Headers


class UnreadableBody(ValueError):
    """Parsers may interpret the body differently, or not at all."""


def is_encoded(headers: Headers) -> bool:
    """Whether the body has a content coding such as gzip (RFC 9110 §8.4)."""
    return (headers.combined("content-encoding") or "").strip().lower() not in {"", "identity"}


# ------------------------------------------------------------------------------------------------
# Forms

_MAX_TYPE_LENGTH = 256
_PARAMETER = r"""[ \t]*;[ \t]*(boundary|charset)=(?P<quote>"?)([A-Za-z0-9'_+.-]{1,70})(?P=quote)"""
_CONTENT_TYPE = re.compile(rf"([a-z/-]+)((?:{_PARAMETER})*)[ \t]*", re.IGNORECASE)
_UTF_8 = frozenset({"utf-8", "utf8"})


def form_values(headers: Headers, body: bytes, name: str) -> list[str]:
    """Return the values of a form field, urlencoded or multipart. Files have no value.

    Raises UnreadableBody, and UnicodeDecodeError.
    """
    lines = headers.lines("content-type")
    found = _CONTENT_TYPE.fullmatch(lines[0][:_MAX_TYPE_LENGTH]) if len(lines) == 1 else None
    if found is None or len(lines[0]) > _MAX_TYPE_LENGTH:
        raise UnreadableBody("there is no single Content-Type of the usual form")
    pairs = [
        (key.lower(), value) for key, _, value in re.findall(_PARAMETER, found[2], re.IGNORECASE)
    ]
    parameters = dict(pairs)
    if len(parameters) < len(pairs) or parameters.get("charset", "utf-8").lower() not in _UTF_8:
        raise UnreadableBody("the Content-Type repeats a parameter, or has another charset")
    match found[1].lower():
        case "application/x-www-form-urlencoded":
            return _parse_urlencoded(body, name)
        case "multipart/form-data":
            return _parse_multipart(body, parameters.get("boundary", "").encode("ascii"), name)
        case _:
            raise UnreadableBody("it is not a form")


def _parse_urlencoded(body: bytes, name: str) -> list[str]:
    """Parse application/x-www-form-urlencoded, as defined by the URL Standard.

    Some parsers also split at semicolons, and some decode non-ASCII bytes as Latin-1. A body that
    begins with a brace may be read as JSON, whatever its type. Regular clients escape all of these
    characters.
    """
    if not body.isascii() or b";" in body or body.lstrip().startswith(b"{"):
        raise UnreadableBody("it has characters that should be escaped")
    found = islice(_name_pattern(name).finditer(body), 2)
    return [unquote_plus((each[1] or b"").decode("ascii"), errors="strict") for each in found]


@lru_cache(maxsize=256)
def _name_pattern(name: str) -> re.Pattern[bytes]:
    """Return a pattern for the values of a field; any character of its name may be escaped."""
    characters = []
    for character in name:
        escape = f"%{ord(character):02X}"
        plain = {"+": escape, "%": "%(?![0-9A-Fa-f]{2})"}.get(character, re.escape(character))
        characters.append(f"(?:{plain}|(?i:{escape}))")
    return re.compile(rf"(?<![^&]){''.join(characters)}(?:=([^&]*))?(?=&|\Z)".encode("ascii"))


_PART_FIELD = re.compile(rb"([A-Za-z0-9!#$%&'*+.^_`|~-]+):[ \t]*([^\r\n\0]*)")
# Some parsers treat backslashes and percent signs as escapes. Browsers send neither, and they
# escape control characters.
_CONTENT_DISPOSITION = re.compile(
    rb"""form-data;[ ]?name="([^"\\%\x00-\x1f\x7f]*)\""""
    rb"""(;[ ]?filename="[^"\\]*"(;[ ]?filename\*=[\w'%.~-]*)?)?"""
)
_TEXT = re.compile(rb"""text/plain(;[ ]?charset="?(utf-8|us-ascii)"?)?""", re.IGNORECASE)
_IDENTITY_ENCODINGS = frozenset({b"7bit", b"8bit", b"binary"})


def _parse_multipart(body: bytes, boundary: bytes, name: str) -> list[str]:
    """Parse multipart/form-data (RFC 7578) without preamble, epilogue and folded lines.

    Some parsers accept other line endings before a boundary, and some find a boundary within a
    line. The boundary must therefore not occur anywhere else in the body.
    """
    if not boundary:
        raise UnreadableBody("it has no boundary")
    before, *parts = body.split(b"--" + boundary)
    if before.strip(b"\r\n") or not parts or parts.pop() not in {b"--", b"--\r\n"}:
        raise UnreadableBody("it does not begin and end with its boundary")
    values: list[str] = []
    for part in parts:
        head, blank, content = part[2:-2].partition(b"\r\n\r\n")
        if not blank or part[:2] != b"\r\n" or part[-2:] != b"\r\n":
            raise UnreadableBody("a part does not begin and end with a line")
        values += _values_of_part(head, content, name)
    return values


def _values_of_part(head: bytes, content: bytes, name: str) -> list[str]:
    fields: dict[bytes, bytes] = {}
    for line in head.split(b"\r\n"):
        field = _PART_FIELD.fullmatch(line)
        if field is None or (key := field[1].lower()) in fields:
            raise UnreadableBody("a part has a malformed or repeated field")
        fields[key] = field[2].rstrip(b" \t")
    disposition = _CONTENT_DISPOSITION.fullmatch(fields.get(b"content-disposition", b""))
    if disposition is None:
        raise UnreadableBody("a part has an unusual Content-Disposition")
    if _is_padded(disposition[1]):
        raise UnreadableBody("a part's name has blanks around it")
    if fields.get(b"content-transfer-encoding", b"binary").lower() not in _IDENTITY_ENCODINGS:
        raise UnreadableBody("a part is encoded")
    if disposition[1] != name.encode("ascii"):
        return []
    # Frameworks disagree about whether a file with this name hides a value.
    if disposition[2] is not None or not _TEXT.fullmatch(
        fields.get(b"content-type", b"text/plain")
    ):
        raise UnreadableBody("the field is a file, or has another charset")
    return [content.decode("utf-8")]


def _is_padded(name: bytes) -> bool:
    """Whether a part's name has surrounding white space, which Django strips and others keep."""
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError:
        text = name.decode("latin-1")  # as in Starlette
    return text != text.strip()


# ------------------------------------------------------------------------------------------------
# JSON


# A string in JSON may contain text that a form parser takes for a field. Some servers join repeated
# header fields, and parsers differ in the characters that they ignore around a content type.
_MAYBE_FORM = re.compile("urlencoded|multipart", re.IGNORECASE)


class _JSONObject(list[tuple[str, Any]]):
    """The members of an object in order, including repeated names."""


def json_values(headers: Headers, body: bytes, path: tuple[str, ...]) -> list[str]:
    """Return the strings and integers at a path of names; several if a name is repeated.

    Raises ValueError if the body is not JSON in UTF-8 or its Content-Type is a form's, and
    RecursionError. The standard library's parser reports repeated names; most others drop them (RFC
    8259 §4).
    """
    lines = headers.lines("content-type")
    if len(lines) > 1 or _MAYBE_FORM.search("".join(lines)):
        raise UnreadableBody("applications may read it as a form")
    value: Any = json.loads(body.decode("utf-8"), object_pairs_hook=_JSONObject)
    for name in path:
        if not isinstance(value, _JSONObject):
            return []
        found = [member for key, member in value if key == name]
        if len(found) != 1:
            return [""] * len(found)
        (value,) = found
    if isinstance(value, bool) or not isinstance(value, str | int):
        return []
    return [str(value)]
