"""Django: what a view reads of a body after a limit, and a limit after Django."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.files.uploadhandler import MemoryFileUploadHandler
from django.http import HttpResponse
from django.http.request import RawPostDataException
from django.test import AsyncClient, Client, override_settings

from tests.django.project import Urls
from upstash_middleware.django import limit

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.http import HttpRequest

    from upstash_middleware.local import LocalUpstash

pytestmark = pytest.mark.anyio

RULE = {"path": "/", "limits": "9/hour", "by": "post:name", "deadline": 20, "name": "by name"}


@pytest.fixture(params=[Client, AsyncClient])
def post(request: pytest.FixtureRequest, upstash: LocalUpstash) -> Any:
    """Send a form with a file, by WSGI and by ASGI, and return the view's status and text."""

    async def post(view: Callable[[HttpRequest], str], *, rules: Any = (RULE,), **data: Any) -> Any:
        def answered(request: HttpRequest) -> HttpResponse:
            return HttpResponse(view(request))

        with override_settings(
            ROOT_URLCONF=Urls(anything=answered),
            MIDDLEWARE=["upstash_middleware.django.UpstashMiddleware"],
            UPSTASH_MIDDLEWARE={"rate_limits": rules, "default_limit": None},
        ):
            file = SimpleUploadedFile("tea.txt", b"tea" * 1000)
            sent = {"name": "ada", "file": file, **data}
            client = request.param()
            response = client.post("/", sent)
            response = await response if request.param is AsyncClient else response
            return response.status_code, response.content.decode()

    return post


def uploaded(request: HttpRequest) -> Any:
    return request.FILES["file"]


def parsing(get_response: Any) -> Any:
    """Read the form before the view, as the check for CSRF does, if a request asks for it."""

    def middleware(request: HttpRequest) -> Any:
        if "early" in request.GET:
            _ = request.POST
        return get_response(request)

    return middleware


async def test_uploads_arrive(post: Any):
    def view(request: HttpRequest) -> str:
        file = uploaded(request)
        return f"{request.POST['name']} {file.name} {file.size}"

    assert await post(view) == (200, "ada tea.txt 3000")


async def test_a_view_may_set_upload_handlers(post: Any):
    """Which Django refuses once it has parsed the form."""

    def view(request: HttpRequest) -> str:
        request.upload_handlers = [MemoryFileUploadHandler(request)]
        return str(uploaded(request).size)

    assert await post(view) == (200, "3000")


async def test_a_view_may_stream_the_body_and_then_not_ask_for_it_again(post: Any):
    def view(request: HttpRequest) -> str:
        begun = request.read(10) + request.readline()
        rest = b"".join(request.readlines())
        with pytest.raises(RawPostDataException):
            _ = request.body
        return str(len(begun + rest) == int(request.META["CONTENT_LENGTH"]))

    assert await post(view) == (200, "True")


async def test_a_view_may_read_the_body_and_the_form(post: Any):
    def view(request: HttpRequest) -> str:
        return f"{len(request.body) > 3000} {request.POST['name']}"

    assert await post(view) == (200, "True ada")


async def test_a_long_upload_is_left_alone(post: Any):
    """It counts with all others that have no name."""

    def view(request: HttpRequest) -> str:
        return str(uploaded(request).size)

    def large() -> SimpleUploadedFile:
        return SimpleUploadedFile("tea.txt", b"t" * 100_000)

    rules = [{**RULE, "limits": "1/hour"}]
    assert await post(view, rules=rules, file=large()) == (200, "100000")
    assert (await post(view, rules=rules, file=large(), name="bob"))[0] == 429
    assert (await post(view, rules=rules))[0] == 200


@pytest.mark.parametrize("early", ["", "?early=1"])
@pytest.mark.parametrize("kind", [Client, AsyncClient])
async def test_a_decorator_reads_the_form_that_django_has_parsed(
    upstash: LocalUpstash, kind: Any, early: str
):
    @limit("1/hour", by="post:name", deadline=20)
    def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse(request.POST["name"] + str(uploaded(request).size))

    with override_settings(
        ROOT_URLCONF=Urls(anything=view),
        MIDDLEWARE=[f"{__name__}.parsing"],
        UPSTASH_MIDDLEWARE={"default_limit": None},
    ):
        statuses = []
        for name in ("ada", " Ada", "bob"):
            data = {"name": name, "file": SimpleUploadedFile("a", b"x" * 10)}
            response = kind().post(f"/{early}", data)
            response = await response if kind is AsyncClient else response
            statuses.append(response.status_code)
    assert statuses == [200, 429, 200]
