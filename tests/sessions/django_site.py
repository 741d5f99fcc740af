"""A site with Django's auth, messages and admin on our sessions, and what its visitors do.

A program of its own, since a process has one Django project: it runs each of the functions named
``test_…`` and prints what became of them as JSON. ``test_django_site.py`` reads that.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import traceback
from typing import TYPE_CHECKING, Any

import django
from django.conf import settings

from upstash_middleware import Redis
from upstash_middleware.local.testing import local_upstash

if TYPE_CHECKING:
    from collections.abc import Iterator

    from upstash_middleware.local import LocalUpstash

OURS = "upstash_middleware.django."
AUTH = "django.contrib.auth."

settings.configure(
    ALLOWED_HOSTS=["*"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": "file:site?mode=memory&cache=shared",  # for all threads
        }
    },
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    INSTALLED_APPS=[
        "django.contrib.admin",
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.messages",
        "upstash_middleware.django",
    ],
    LOGGING_CONFIG=None,
    LOGIN_REDIRECT_URL="/me",
    LOGIN_URL="/log_in",
    MESSAGE_STORAGE="django.contrib.messages.storage.session.SessionStorage",
    MIDDLEWARE=[
        f"{OURS}UpstashMiddleware",
        f"{OURS}SessionMiddleware",
        "django.middleware.common.CommonMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        f"{AUTH}middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
    ],
    PASSWORD_HASHERS=[f"{AUTH}hashers.MD5PasswordHasher"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="for tests alone",
    SESSION_ENGINE=f"{OURS}sessions",
    TEMPLATES=[
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "APP_DIRS": True,
            "OPTIONS": {
                "context_processors": [
                    "django.template.context_processors.request",
                    f"{AUTH}context_processors.auth",
                    "django.contrib.messages.context_processors.messages",
                ]
            },
        }
    ],
    UPSTASH_MIDDLEWARE={
        "breaker": False,
        "cache": [{"path": "/{rest:path}", "ttl": 60}],
        "deadline": 20,
        "default_limit": "100000/hour",
    },
)
django.setup()

from django.contrib import admin  # noqa: E402
from django.contrib.auth import alogin, alogout, login, logout  # noqa: E402
from django.contrib.auth.decorators import login_required  # noqa: E402
from django.contrib.auth.models import User  # noqa: E402
from django.contrib.auth.signals import user_logged_in  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.http import HttpResponse, HttpResponseRedirect  # noqa: E402
from django.test import AsyncClient, Client, override_settings  # noqa: E402
from django.urls import path  # noqa: E402


def log_in(request: Any) -> HttpResponse:
    login(request, User.objects.get(username=request.GET["name"]))
    return HttpResponseRedirect("/me")


async def alog_in(request: Any) -> HttpResponse:
    await alogin(request, await User.objects.aget(username=request.GET["name"]))
    return HttpResponseRedirect("/me")


@login_required
def me(request: Any) -> HttpResponse:
    return HttpResponse(request.user.username)


def who(request: Any) -> HttpResponse:
    return HttpResponse(request.user.username or "nobody")


def overtaken(request: Any) -> HttpResponse:
    """Another request renews the login between the loading of the session and its use here."""
    browser = Client()
    browser.cookies["sessionid"] = request.COOKIES["sessionid"]
    assert browser.get("/who").cookies["sessionid"].value, "the other request renews it"
    shown = HttpResponse(request.user.username or "nobody")
    if request.GET:
        request.session.update(request.GET.dict())
    return shown


def log_out(request: Any) -> HttpResponse:
    logout(request)
    return HttpResponse("bye")


async def alog_out(request: Any) -> HttpResponse:
    await alogout(request)
    return HttpResponse("bye")


def bind_session(request: Any) -> HttpResponse:
    request.session.bind(request.user.pk)
    return HttpResponse("bound")


VIEWS = (log_in, alog_in, me, who, overtaken, log_out, alog_out)
urlpatterns = [
    path("bind", bind_session),
    path("admin/", admin.site.urls),
    *(path(view.__name__, view) for view in VIEWS),
]


def bind(request: Any, user: User, **_: Any) -> None:
    request.session.bind(user.pk)


def add_users() -> None:
    call_command("migrate", verbosity=0)
    for name in ("ada", "grace"):
        User.objects.create_superuser(name, password="secret")


# ------------------------------------------------------------------------------------------------


def test_the_admin_logs_in_adds_with_a_message_and_logs_out(upstash: LocalUpstash) -> None:
    browser = Client()
    browser.cookies["sessionid"] = before = "a" * 32
    page = browser.get("/admin/", follow=True)
    assert page.redirect_chain[-1][0] == "/admin/login/?next=/admin/"
    form = {"username": "ada", "password": "secret", "next": "/admin/"}
    page = browser.post("/admin/login/", form, follow=True)
    assert b"Site administration" in page.content
    key = browser.cookies["sessionid"].value
    assert re.fullmatch("[a-z0-9]{32}", key)
    assert key != before
    group = {"name": f"readers of {upstash.port}", "_save": "Save"}
    page = browser.post("/admin/auth/group/add/", group, follow=True)
    assert b"was added successfully" in page.content
    assert b"was added successfully" not in browser.get("/admin/auth/group/").content
    page = browser.post("/admin/logout/")
    assert page.status_code == 200
    other = Client()
    other.cookies["sessionid"] = key
    assert other.get("/admin/").status_code == 302


def test_a_hundred_logins_are_all_logged_in_at_the_redirect(upstash: LocalUpstash) -> None:
    pages = [Client().get("/log_in?name=ada", follow=True).content for _ in range(100)]
    assert pages == [b"ada"] * 100


def test_async_views_log_in_and_out(upstash: LocalUpstash) -> None:
    async def visit() -> None:
        browser = AsyncClient()
        page = await browser.get("/alog_in?name=grace", follow=True)
        assert page.content == b"grace"
        await browser.get("/alog_out")
        assert (await browser.get("/who")).content == b"nobody"

    asyncio.run(visit())


def test_a_login_keeps_what_an_anonymous_visitor_stored_and_another_user_does_not_get_it(
    upstash: LocalUpstash,
) -> None:
    browser = Client()
    session = browser.session
    session["cart"] = [1]
    session.save()
    browser.get("/log_in?name=ada")
    assert browser.session["cart"] == [1]
    browser.get("/log_in?name=grace")
    assert "cart" not in browser.session
    assert browser.get("/who").content == b"grace"


def test_of_two_requests_that_renew_a_login_under_a_new_key_one_sets_the_cookie(
    upstash: LocalUpstash,
) -> None:
    for query, status in (("", 200), ("?cart=7", 400)):
        browser = Client()
        browser.get("/log_in?name=ada")
        with override_settings(
            SECRET_KEY="the new one", SECRET_KEY_FALLBACKS=[settings.SECRET_KEY]
        ):
            page = browser.get(f"/overtaken{query}")
            assert page.status_code == status, "what cannot be saved is not confirmed"
            assert "sessionid" not in page.cookies, "the browser keeps that of the other response"
            assert query or page.content == b"ada"


def test_an_outage_logs_nobody_out(upstash: LocalUpstash) -> None:
    browser, other = Client(), Client()
    browser.get("/log_in?name=ada")
    with upstash.faults(fault="refuse"):
        page = browser.get("/who")
        assert page.content == b"nobody"
        assert "sessionid" not in page.cookies
        for client, url in ((browser, "/log_out"), (browser, "/alog_out"), (other, "/log_in")):
            page = client.get(f"{url}?name=ada")
            assert page.status_code == 503, (url, page.status_code)
            assert page["Content-Type"] == "application/problem+json"
            page = client.get(f"{url}?name=ada", headers={"Accept": "text/html,*/*;q=0.8"})
            assert (page.status_code, page["Content-Type"]) == (503, "text/html; charset=utf-8")
            assert b"The session cannot be changed at the moment." in page.content
            assert not page.cookies
        form = {"username": "ada", "password": "secret", "next": "/admin/"}
        assert other.post("/admin/login/", form).status_code == 503
    assert browser.get("/who").content == b"ada"


def test_pages_of_users_are_never_shared(upstash: LocalUpstash) -> None:
    ada, grace = Client(), Client()
    ada.get("/log_in?name=ada")
    grace.get("/log_in?name=grace")
    for _ in range(2):
        assert ada.get("/who").content == b"ada"
        assert grace.get("/who").content == b"grace"
        assert Client().get("/who").content == b"nobody"


def test_a_receiver_of_a_signal_binds_each_login(upstash: LocalUpstash) -> None:
    user_logged_in.connect(bind)
    try:
        here, there, grace = Client(), Client(), Client()
        for browser, name in ((here, "ada"), (there, "ada"), (grace, "grace")):
            assert browser.get(f"/log_in?name={name}", follow=True).content == name.encode()
        assert there.cookies["sessionid"].value.startswith("0")
        session: Any = here.session
        session.revoke_all(User.objects.get(username="ada").pk)
        assert [browser.get("/who").content for browser in (here, there, grace)] == [
            b"nobody",
            b"nobody",
            b"grace",
        ]
    finally:
        user_logged_in.disconnect(bind)


def test_the_command_line_shows_and_ends_the_sessions_of_a_user(upstash: LocalUpstash) -> None:
    ada, grace = Client(), Client()
    ada.get("/log_in?name=ada")
    ada.get("/bind")
    grace.get("/log_in?name=grace")
    user = str(User.objects.get(username="ada").pk)
    [key] = Redis.from_env().keys("*:session:*")[:1]
    call_command("upstash", "sessions", "show", key, "--values")
    call_command("upstash", "sessions", "list", "--user", user)
    call_command("upstash", "sessions", "end", "--user", user)
    assert [browser.get("/who").content for browser in (ada, grace)] == [b"nobody", b"grace"]


def test_the_test_client_logs_in_by_force(upstash: LocalUpstash) -> None:
    browser = Client()
    browser.force_login(User.objects.get(username="ada"))
    assert browser.get("/who").content == b"ada"
    browser.logout()
    assert browser.get("/who").content == b"nobody"


def test_the_system_checks_find_nothing(upstash: LocalUpstash) -> None:
    call_command("check", fail_level="WARNING")


def results() -> Iterator[tuple[str, str]]:
    """Run all tests, and yield for each its name and its traceback, empty if it has passed."""
    for name, test in list(globals().items()):
        if name.startswith("test_"):
            with local_upstash() as upstash:
                try:
                    test(upstash)
                except Exception:  # noqa: BLE001 - whatever is wrong is reported
                    yield name, traceback.format_exc()
                else:
                    yield name, ""


if __name__ == "__main__":
    add_users()
    sys.stdout.write(json.dumps(dict(results())))
