"""Rules match the same paths under every server: with a prefix, without, and in any spelling."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.servers.running import SERVERS

if TYPE_CHECKING:
    from tests.servers.running import Site

MOUNTS = {"starlette": ("/sub", "/open"), "fastapi": ("/open",), "flask": ("/sub", "/open")}
MOUNTS["django"] = ()  # it has none
SPELLINGS = (
    *("/login", "//login", "///login", "/%2Flogin", "/%2flogin", "/login/", "/login//"),
    *("/login%2F", "/login%0A", "/login%0D", "/login%20", "/%20login", "/login%00", "/login%FF"),
    *("/l%6Fgin", "/LOGIN", "/login;a=b", "/./login", "/x/../login", "/login/.", "/login?x"),
    *("/login%3Fx", "/login%5C", "/%5Clogin", "/login#x", "/login%C2%85", "/login%E2%80%A8"),
)


def test_no_spelling_of_a_path_reaches_a_view_whose_quota_is_used_up(site: Site):
    takes = site.server.takes
    assert len(site.reaches(*[f"{prefix}/login" for prefix in takes] * 3)) == 2, "the limit"
    prefixes = {f"{slashes}{prefix}" for prefix in takes for slashes in ("", "/", "/api", "//api")}
    if site.server is SERVERS["granian-wsgi"]:
        prefixes = {"/api", "/api/", "/api/api"}
    assert site.reaches(*[f"{prefix}{path}" for path in SPELLINGS for prefix in prefixes]) == []
    whole = [f"http://shop.test{prefix}/{path}" for path in ("login", "/login") for prefix in takes]
    assert site.reaches("login", "x/login", *whole) == []


def test_a_proxy_that_removes_the_prefix_and_one_that_does_not_share_quotas(site: Site):
    paths = [f"{prefix}/login" for prefix in site.server.takes]
    known = site.reaches(*paths)
    assert known
    assert len(site.reaches(*known * 2)) == 2 - len(known)


def test_mounted_applications_are_limited_from_inside_and_from_outside(site: Site):
    """The outer middleware's rules are written with the mount's path, the inner one's without."""
    # Starlette finds no mount below a root_path that a proxy has removed from the path.
    mounts = [
        [f"{prefix}{mount}" for prefix in reversed(site.server.takes)]
        for mount in MOUNTS[site.framework]
    ]
    for prefixes in mounts:
        assert len(site.reaches(*[f"{each}/login" for each in prefixes for _ in range(3)])) == 2
    for prefixes in mounts:  # a final line feed counts under the rules of all of them
        assert site.reaches(*[f"{each}{path}" for path in SPELLINGS for each in prefixes]) == []


def test_a_page_is_purged_by_the_url_that_clients_use(site: Site):
    known = [each for each in site.server.takes if site.request("GET", f"{each}/items/7")[0] == 200]
    assert known
    for each in known:
        first = site.request("GET", f"{each}/items/7")
        assert site.request("GET", f"{each}/items/7") == first, "it is stored"
        status, _ = site.request("GET", f"{each}/purge?url={site.server.prefix}/items/7")
        assert status == 200
        assert site.request("GET", f"{each}/items/7") != first


def test_a_prefix_that_the_client_chooses_opens_no_new_quota(site: Site):
    """gunicorn takes SCRIPT_NAME from peers that it trusts, ProxyFix X-Forwarded-Prefix."""
    reached = 0
    for number in range(4):
        for prefix in site.server.takes:
            for path, field in (
                (f"{prefix}/z{number}/login", "SCRIPT_NAME"),
                (f"{prefix}/login", "X-Forwarded-Prefix"),
            ):
                chosen = {field: f"{prefix}/z{number}"}
                reached += site.request("POST", path, **chosen)[1] == "logged in"
    assert reached == 2
