"""HTTP/1.1, client side, by the sections of RFC 9112: requests as bytes, answers from bytes."""

from __future__ import annotations

import re
import time
import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upstash_middleware.errors import ConnectionLost, UnexpectedAnswer, UpstashError
from upstash_middleware.upstash.protocol import (
    MAX_HEAD_BYTES,
    Call,
    RequestEncoder,
    Response,
    ResponseReader,
)

RESP2 = b"Content-Type: application/octet-stream\r\n"
KIND = "application/octet-stream"
ONE = Response(200, KIND, b":1\r\n")


def head(*fields: bytes, first: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return b"\r\n".join((first, *fields, b"", b""))


def counted(*fields: bytes, body: bytes = b":1\r\n", first: bytes = b"HTTP/1.1 200 OK") -> bytes:
    """Return an answer with a Content-Length and these fields besides."""
    return head(RESP2[:-2], b"Content-Length: %d" % len(body), *fields, first=first) + body


def chunked(*chunks: bytes, fields: tuple[bytes, ...] = ()) -> bytes:
    return head(RESP2[:-2], b"Transfer-Encoding: chunked", *fields) + b"".join(chunks)


def read(*pieces: bytes, ends: bool = False, orderly: bool = True) -> tuple[Response | None, bool]:
    """Return the answer that the pieces make, and whether another may follow it."""
    reader = ResponseReader()
    answer = None
    for piece in pieces:
        assert answer is None, "it had ended before"
        answer = reader.feed(piece)
    if ends and answer is None:
        answer = reader.end(orderly=orderly)
    return answer, reader.reusable


def octets(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


# Requests


def lines(url: str, call: Call, *headers: tuple[str, str]) -> list[bytes]:
    request = RequestEncoder(url, headers).request(call)
    top, _, body = request.partition(b"\r\n\r\n")
    assert body == call.body
    return top.split(b"\r\n")


def test_a_request_is_a_request_line_fields_and_a_body_of_the_length_it_says():
    """RFC 9112 §2.1, §3, §6.2."""
    call = Call("/pipeline", (("Content-Type", "application/json"),), b"[1]")
    assert lines("https://db.example", call, ("Authorization", "Bearer t")) == [
        b"POST /pipeline HTTP/1.1",
        b"Host: db.example",
        b"Authorization: Bearer t",
        b"Content-Type: application/json",
        b"Content-Length: 3",
    ]


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://db.example", b"db.example"),
        ("https://db.example:443", b"db.example"),
        ("https://db.example:80", b"db.example:80"),
        ("http://db.example:80", b"db.example"),
        ("http://127.0.0.1:8079", b"127.0.0.1:8079"),
        ("http://[::1]:8079", b"[::1]:8079"),
        ("https://[::1]", b"[::1]"),
        ("https://dätenbank.example", b"xn--dtenbank-0za.example"),
    ],
)
def test_the_host_field_names_the_host_and_a_port_that_is_not_the_schemes(url, host):
    """RFC 9112 §3.2."""
    assert b"Host: " + host in lines(url, Call("/", (), b""))


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("https://db.example", b"/get/a%20b"),
        ("https://db.example/base", b"/base/get/a%20b"),
        ("https://db.example/a b/%20/é", b"/a%20b/%20/%C3%A9/get/a%20b"),
    ],
)
def test_the_request_target_is_in_origin_form(url, target):
    """RFC 9112 §3.2.1."""
    assert lines(url, Call("/get/a%20b", (), b""))[0] == b"POST " + target + b" HTTP/1.1"


@pytest.mark.parametrize("path", ["/a b", "/a\r\nX: y", "/a\n", "/a\0", "/é", "/a\x7f", ""])
def test_a_path_that_would_break_the_request_line_is_refused(path):
    """RFC 9112 §3.2: nothing that a caller gives makes a line of its own (§11.1)."""
    with pytest.raises(ValueError, match="path"):
        RequestEncoder("https://db.example", ()).request(Call(path, (), b""))


@pytest.mark.parametrize(
    "header",
    [
        ("X", "a\r\nY: b"),
        ("X", "a\n"),
        ("X", "a\0"),
        ("X", "é"),
        ("X Y", "a"),
        ("", "a"),
        ("X:", "a"),
    ],
)
def test_a_field_that_would_be_more_than_one_line_is_refused(header):
    """RFC 9112 §5, §11.1."""
    with pytest.raises(ValueError, match="header"):
        RequestEncoder("https://db.example", ()).request(Call("/", (header,), b""))
    with pytest.raises(ValueError, match="header"):
        RequestEncoder("https://db.example", (header,))


# Answers: the status line and the fields


def test_an_answer_has_a_status_a_content_type_a_sync_token_and_a_body():
    answer, reusable = read(counted(b"Upstash-Sync-Token: abc="))
    assert answer == Response(200, KIND, b":1\r\n", "abc=")
    assert reusable


@pytest.mark.parametrize(
    ("first", "status"),
    [
        (b"HTTP/1.1 200 OK", 200),
        (b"HTTP/1.1 404 Not Found at all", 404),
        (b"HTTP/1.1 500 ", 500),
        (b"HTTP/1.1 200", 200),
        (b"HTTP/1.1 299 d\xe9j\xe0", 299),
    ],
)
def test_status_lines_with_any_reason_are_read(first, status):
    """RFC 9112 §2.3, §4."""
    answer, reusable = read(counted(first=first))
    assert (answer and answer.status, reusable) == (status, True)


@pytest.mark.parametrize(
    "first",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.6",
        b"HTTP/2 200 OK",
        b"HTTP/2.0 200 OK",
        b"http/1.1 200 OK",
        b"HTTP/1.1  200 OK",
        b"HTTP/1.1 20 OK",
        b"HTTP/1.1 2000 OK",
        b"HTTP/1.1 099 OK",
        b"HTTP/1.1 -20 OK",
        b"HTTP/1.1\t200 OK",
        b"HTTP/1.1 200OK",
        b" HTTP/1.1 200 OK",
        b"HTTP/1.1 200 O\rK",
        b"HTTP/1.1 200 O\nK",
    ],
)
def test_another_first_line_is_not_http(first):
    """RFC 9112 §4."""
    with pytest.raises(UnexpectedAnswer, match="not HTTP"):
        read(counted(first=first))


@pytest.mark.parametrize("beginning", [b"S", b"SSH-2.0-OpenSSH_9.6\r\n", b"<html>"])
def test_what_cannot_become_http_is_not_waited_for(beginning):
    with pytest.raises(UnexpectedAnswer, match="not HTTP"):
        read(beginning)


@pytest.mark.parametrize(
    "field",
    [
        b"no field",
        b"Content-Type : text/plain",
        b"X\t: y",
        b": nameless",
        b"X Y: z",
        b"X: a\0b",
        b"X: a\rb",
        b"X: a\nb",
        b"\xe9: x",
    ],
)
def test_a_line_that_is_no_field_makes_it_no_http(field):
    """RFC 9112 §2.2, §5.1."""
    with pytest.raises(UnexpectedAnswer, match="not HTTP"):
        read(counted(field))


@pytest.mark.parametrize("name", [b"CONTENT-LENGTH", b"content-length", b"cOnTeNt-LeNgTh"])
@pytest.mark.parametrize("around", [b"%b:4", b"%b:    4", b"%b:\t4 \t"])
def test_names_have_any_case_and_values_any_whitespace_around(name, around):
    """RFC 9112 §5, §5.1."""
    data = head(RESP2[:-2], around % name) + b":1\r\n"
    assert read(data) == (ONE, True)


@pytest.mark.parametrize("fold", [b"\r\n ", b"\r\n\t", b" \r\n  \t"])
def test_a_folded_line_is_rejected(fold):
    """RFC 9112 §5.2: a server must not generate one."""
    with pytest.raises(UnexpectedAnswer, match="not HTTP"):
        read(head(b"Content-Type:%btext/plain" % fold, b"Content-Length: 4") + b":1\r\n")


def test_a_field_name_within_another_fields_value_has_no_meaning():
    assert read(counted(b"Z: content-length: 3")) == (ONE, True)


def test_bytes_beyond_ascii_in_a_value_are_some_text():
    answer, _ = read(counted(b"Upstash-Sync-Token: \xff\xfe"))
    assert answer is not None
    assert answer.sync_token == "ÿþ"


@pytest.mark.parametrize("pieces", [1, 1000])
def test_a_head_longer_than_64_kib_is_not_read_to_its_end(pieces):
    """RFC 9112 §2.3, §3 leave the limit to the recipient."""
    endless = b"HTTP/1.1 200 OK\r\nX: " + b"y" * (MAX_HEAD_BYTES * 2)
    cut = len(endless) // pieces + 1
    with pytest.raises(UnexpectedAnswer, match="longer than"):
        read(*(endless[at : at + cut] for at in range(0, len(endless), cut)))
    with pytest.raises(UnexpectedAnswer, match="longer than"):
        read(endless + b"\r\n\r\n")


# Answers: the body's length (§6.3)


@pytest.mark.parametrize("interim", [b"HTTP/1.1 100 Continue", b"HTTP/1.1 103 Early Hints"])
@pytest.mark.parametrize("times", [1, 3])
def test_interim_answers_are_passed_over(interim, times):
    """RFC 9110 §15.2."""
    before = head(b"Link: </x>", b"Content-Length: 5", first=interim) * times
    assert read(before + counted()) == (ONE, True)
    assert read(before, counted()) == (ONE, True)


def test_interim_answers_without_end_are_unexpected():
    with pytest.raises(UnexpectedAnswer, match="more than 20 interim responses"):
        read(head(first=b"HTTP/1.1 100 Continue") * 21 + counted())


def test_a_switch_to_another_protocol_that_nobody_asked_for_is_unexpected():
    """RFC 9110 §15.2.2."""
    with pytest.raises(UnexpectedAnswer, match="another protocol"):
        read(head(b"Upgrade: h2c", first=b"HTTP/1.1 101 Switching Protocols"))


@pytest.mark.parametrize("status", [b"204", b"304"])
@pytest.mark.parametrize("field", [b"Content-Length: 5", b"Transfer-Encoding: chunked", b"X: y"])
def test_204_and_304_have_no_body_whatever_they_say(status, field):
    """§6.3, rule 1."""
    answer, reusable = read(head(field, first=b"HTTP/1.1 " + status + b" X"))
    assert (answer and (answer.status, answer.body), reusable) == ((int(status), b""), True)


def test_a_length_of_nothing_is_a_whole_answer():
    answer, reusable = read(counted(body=b""))
    assert (answer and answer.body, reusable) == (b"", True)


@pytest.mark.parametrize(
    "value",
    [
        b"", b"-4", b"+4", b"4.0", b"0x4", b"4 4", b"four", b"4, 5", b"4,", b"9" * 5000, b"4_0",
        b"\xb2", b"4, 4", b"4\r\nContent-Length: 5", b"4\r\nContent-Length: 4",
    ],
)  # fmt: skip
def test_lengths_that_differ_or_are_none_are_unexpected(value):
    """§6.3, rule 5."""
    with pytest.raises(UnexpectedAnswer):
        read(head(b"Content-Length: " + value) + b":1\r\n")


def test_a_response_without_a_length_is_rejected():
    """§8: whether it is complete when the connection ends is uncertain."""
    with pytest.raises(UnexpectedAnswer, match="no length"):
        read(head(RESP2[:-2]) + b":1\r\n")


@pytest.mark.parametrize(
    "data",
    [
        counted(body=b"12345")[:-1],
        counted(body=b"12345")[:-5],
        chunked(b"4\r\n:1\r\n\r\n"),
        chunked(b"4\r\n:1\r"),
        chunked(b"4\r\n:1\r\n\r\n0\r\n"),
        chunked(),
    ],
)
def test_a_body_that_ends_before_its_end_was_cut_short(data):
    """§8."""
    with pytest.raises(UnexpectedAnswer, match="cut short"):
        read(data, ends=True)


@pytest.mark.parametrize(
    "data", [b"", b"HTTP/1.1 200 OK\r\nContent-Le", head(first=b"HTTP/1.1 100 Continue")]
)
def test_a_connection_that_ends_before_the_head_did_is_lost(data):
    """§8."""
    with pytest.raises(ConnectionLost):
        read(*[data] if data else [], ends=True)


def test_bytes_after_the_end_belong_to_no_answer_and_the_connection_is_not_used_again():
    """§11.2: they are no answer to a request that has not been made."""
    assert read(counted() + b"HTTP/1.1 200 OK\r\n") == (ONE, False)
    assert read(counted()[:-2], b"\r\nx") == (ONE, False)
    assert read(chunked(b"4\r\n:1\r\n\r\n0\r\n\r\nx")) == (ONE, False)
    assert read(head(first=b"HTTP/1.1 204 X") + b"x")[1] is False


# Answers: chunks (§7.1)


@pytest.mark.parametrize(
    "chunks",
    [
        (b"4\r\n:1\r\n\r\n", b"0\r\n\r\n"),
        (b"1\r\n:\r\n", b"3\r\n1\r\n\r\n", b"0\r\n\r\n"),
        (b"0004\r\n:1\r\n\r\n", b"000\r\n\r\n"),
        (b"4;name=value;x\r\n:1\r\n\r\n", b'0;y="z"\r\n\r\n'),
        (b"4\r\n:1\r\n\r\n", b"0\r\nUpstash-Sync-Token: late\r\nX: y\r\n\r\n"),
    ],
)
def test_chunks_are_put_together_without_extensions_and_trailers(chunks):
    """§7.1, §7.1.1, §7.1.2."""
    assert read(chunked(*chunks)) == (ONE, True)
    assert read(*octets(chunked(*chunks))) == (ONE, True)


def test_a_chunks_size_is_hexadecimal_in_any_case():
    body = b"x" * 0xAB
    for size in (b"ab", b"AB", b"aB"):
        answer, _ = read(chunked(size + b"\r\n" + body + b"\r\n0\r\n\r\n"))
        assert answer is not None
        assert answer.body == body


@pytest.mark.parametrize(
    "chunk",
    [
        b"\r\n:1\r\n\r\n", b"x\r\n", b"-4\r\n:1\r\n\r\n", b"+4\r\n:1\r\n\r\n", b"0x4\r\n:1\r\n\r\n",
        b"4_4\r\n", b" 4\r\n:1\r\n\r\n", b"4 4\r\n:1\r\n\r\n", b"f" * 40 + b"\r\n",
        b"3\r\n:1\r\n\r\n", b"4\r\n:1\r\nxx", b"y" * (MAX_HEAD_BYTES + 1),
        b"0\r\n" + b"X: y\r\n" * MAX_HEAD_BYTES,
    ],
)  # fmt: skip
def test_what_is_no_chunk_is_unexpected(chunk):
    """§7.1, §11.2."""
    with pytest.raises(UnexpectedAnswer):
        read(chunked(chunk))


def test_chunks_with_a_length_besides_are_rejected():
    """§6.1, §6.3, rule 3."""
    with pytest.raises(UnexpectedAnswer):
        read(chunked(b"4\r\n:1\r\n\r\n0\r\n\r\n", fields=(b"Content-Length: 2",)))


@pytest.mark.parametrize(
    "coding", [b"gzip", b"gzip, chunked", b"chunked, chunked", b"identity", b""]
)
def test_another_transfer_coding_is_unexpected(coding):
    """§6.1: none was asked for with TE."""
    with pytest.raises(UnexpectedAnswer, match=r"transfer coding|Transfer-Encoding"):
        read(head(b"Transfer-Encoding: " + coding) + b"0\r\n\r\n")


# Answers: whether the connection goes on (§9.3, §9.6)


@pytest.mark.parametrize(
    ("field", "goes_on"),
    [
        (b"Connection: close", False),
        (b"Connection: CLOSE", False),
        (b"Connection: keep-alive, close", False),
        (b"Connection: x\r\nConnection: close", False),
        (b"Connection: keep-alive", True),
        (b"Connection: closed", True),
        (b"X-Connection: close", True),
    ],
)
def test_a_connection_goes_on_unless_it_says_close(field, goes_on):
    """§9.3, §9.6."""
    assert read(counted(field)) == (ONE, goes_on)


@pytest.mark.parametrize("fields", [(), (b"Connection: keep-alive",)])
def test_a_connection_of_http_1_0_is_not_used_again(fields):
    """§9.3: the persistence of HTTP/1.0 is not relied on."""
    assert read(counted(*fields, first=b"HTTP/1.0 200 OK")) == (ONE, False)


# However it comes


@st.composite
def answers(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A response's bytes and its body."""
    body = draw(st.binary(max_size=80))
    before = head(b"X: y", first=b"HTTP/1.1 103 Early Hints") * draw(st.integers(0, 2))
    kind = draw(st.sampled_from(["counted", "chunked"]))
    if kind == "counted":
        return before + counted(body=body), body
    chunks, left = b"", body
    while left:
        size = draw(st.integers(1, len(left)))
        extension = draw(st.sampled_from([b"", b";a", b";a=b"]))
        chunks += b"%x%b\r\n%b\r\n" % (size, extension, left[:size])
        left = left[size:]
    trailers = b"T: u\r\n" * draw(st.integers(0, 2))
    return before + chunked(chunks + b"0\r\n" + trailers + b"\r\n"), body


@given(answers(), st.lists(st.integers(0, 500), max_size=8))
def test_any_split_of_the_bytes_gives_the_same_answer(answer, cuts):
    data, body = answer
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = [data[a:b] for a, b in pairwise(places)]
    assert read(*pieces) == (Response(200, KIND, body), True)
    assert read(*octets(data)) == (Response(200, KIND, body), True)


@given(answers(), st.integers(0, 500), st.binary(min_size=1, max_size=4), st.booleans())
def test_damaged_bytes_are_an_answer_or_one_of_the_packages_errors(answer, at, damage, orderly):
    data, _ = answer
    damaged = data[:at] + damage + data[at + len(damage) :]
    results: list[Response | type[UpstashError]] = []
    for pieces in ([damaged], octets(damaged)):
        reader = ResponseReader()
        try:
            found = next(filter(None, map(reader.feed, pieces)), None)
            results.append(found or reader.end(orderly=orderly))
        except UpstashError as error:
            results.append(type(error))
    assert results[0] == results[1]


@pytest.mark.parametrize("kind", ["counted", "chunked", "small chunks"])
def test_ten_megabytes_in_small_pieces_take_time_in_proportion(kind):
    """Not in proportion to its square, which would take a minute."""
    body = b"x" * 10_000_000
    data = {
        "counted": counted(body=body),
        "chunked": chunked(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)),
        "small chunks": chunked(
            (b"64\r\n" + b"x" * 100 + b"\r\n") * (len(body) // 100), b"0\r\n\r\n"
        ),
    }[kind]
    began = time.process_time()
    answer, _ = read(*(data[at : at + 1400] for at in range(0, len(data), 1400)))
    assert answer is not None
    assert answer.body == body
    assert time.process_time() - began < 10


def test_errors_do_not_repeat_what_came():
    """It might be the request, with its token, sent back."""
    for data in (
        counted(first=b"Authorization: Bearer s3cret"),
        counted(b"s3cret"),
        head(b"Content-Length: s3cret"),
        head(b"Transfer-Encoding: s3cret"),
        chunked(b"s3cret\r\n"),
    ):
        with pytest.raises(UnexpectedAnswer) as raised:
            read(data)
        assert not re.search("s3cret", f"{raised.value!r}")


def test_a_body_in_chunks_of_one_byte_takes_memory_in_proportion():
    """An object for each of them would take forty times as much."""
    size = 200_000
    data = chunked(b"1\r\nx\r\n" * size, b"0\r\n\r\n")
    tracemalloc.start()
    try:
        answer, _ = read(*(data[at : at + 65_536] for at in range(0, len(data), 65_536)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert answer is not None
    assert answer.body == b"x" * size
    assert peak < 10 * size
