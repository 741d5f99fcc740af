"""Request header fields that the cache knows by name, and checks of responses that reflect them.

The response can depend on header fields that are not part of the cache key. Frameworks build links
and redirects from X-Forwarded-Host and similar fields, and pages may show the client's address. A
response to a forged field must not be sent to other clients (RFC 9111 §7.1). Values that describe
the URL are therefore part of the cache key. The client's address is not, so responses are searched
for it.

Each line of the tables has a reason. The settings ``credential_fields`` and ``reflected_fields``
add fields to two of them.
"""

from __future__ import annotations

import re
import zlib
from functools import lru_cache
from ipaddress import IPv6Address
from typing import TYPE_CHECKING
from urllib.parse import quote

from msgspec import Struct

from upstash_middleware.core.cache.keys import normal_query, url_text
from upstash_middleware.core.identify import parse_address
from upstash_middleware.messages import normal_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from upstash_middleware.core.cache.rules import CacheRule
    from upstash_middleware.messages import Headers, HTTPRequest

# --- Fields that identify a user ----------------------------------------------------------------
#
# In profile "safe", these fields are treated like Authorization in RFC 9111 §3.5.
CREDENTIAL_FIELDS: Mapping[str, str] = {
    "Proxy-Authorization": "credentials for a proxy (RFC 9110 §11.7.2), passed on by some",
    "X-Authorization": "Authorization, where a proxy keeps that field for itself",
    "X-Api-Key": "API key: FastAPI's APIKeyHeader, AWS API Gateway, Kong, Azure",
    "Api-Key": "API key: Azure OpenAI, New Relic",
    "Key": "API key: django-ninja's APIKeyHeader",
    "ApiKey": "API key: Kong's key-auth",
    "X-ApiKey": "API key: Apigee",
    "X-Goog-Api-Key": "API key: Google Cloud",
    "X-RapidAPI-Key": "API key: RapidAPI",
    "X-RapidAPI-User": "user name: RapidAPI's proxy",
    "X-RapidAPI-Proxy-Secret": "shared secret: RapidAPI's proxy",
    "Ocp-Apim-Subscription-Key": "API key: Azure API Management",
    "X-Functions-Key": "API key: Azure Functions",
    "X-Auth-Token": "token: OpenStack and many APIs",
    "X-Access-Token": "token: many APIs",
    "X-Session-Token": "token of a session: Ory Kratos, Metabase",
    "X-Session-Id": "identifier of a session",
    "X-Id-Token": "OpenID Connect token",
    "X-Refresh-Token": "OAuth refresh token",
    "X-User-Token": "token of a user",
    "X-Token": "token",
    "X-JWT": "JSON Web Token",
    "X-JWT-Assertion": "JSON Web Token: WSO2",
    "Auth-Token": "token",
    "Access-Token": "token: devise-token-auth",
    "Private-Token": "token: GitLab",
    "DPoP": "proof of possession of a token (RFC 9449)",
    "X-Amz-Security-Token": "session token of signed requests: AWS",
    "Remote-User": "user: Authelia; also what a server authenticated (CGI's REMOTE_USER)",
    "Remote-Groups": "groups: Authelia",
    "Remote-Email": "user's address: Authelia",
    "Remote-Name": "user's name: Authelia",
    "X-Remote-User": "user: Apache and nginx recipes, Kubernetes' front proxy",
    "X-Remote-Group": "groups: Kubernetes' front proxy",
    "X-Forwarded-User": "user: oauth2-proxy, Traefik forward-auth, OpenShift oauth-proxy",
    "X-Forwarded-Email": "user's address: oauth2-proxy",
    "X-Forwarded-Groups": "groups: oauth2-proxy",
    "X-Forwarded-Preferred-Username": "user: oauth2-proxy",
    "X-Forwarded-Access-Token": "token: oauth2-proxy",
    "X-Auth-Request-User": "user: oauth2-proxy behind nginx's auth_request",
    "X-Auth-Request-Email": "user's address: the same",
    "X-Auth-Request-Groups": "groups: the same",
    "X-Auth-Request-Preferred-Username": "user: the same",
    "X-Auth-Request-Access-Token": "token: the same",
    "X-Auth-User": "user: nginx recipes",
    "X-Auth-Username": "user: nginx recipes",
    "X-Authenticated-User": "user: gateways",
    "X-Authenticated-Userid": "user: Kong",
    "X-Consumer-Id": "API consumer: Kong",
    "X-Consumer-Custom-Id": "API consumer: Kong",
    "X-Consumer-Username": "API consumer: Kong, APISIX",
    "X-Credential-Identifier": "credential: Kong",
    "X-Userinfo": "claims of the user: Kong, APISIX",
    "X-User": "user: gateways",
    "X-User-Id": "user: gateways",
    "X-User-Email": "user's address: gateways",
    "X-Username": "user: gateways",
    "X-WebAuth-User": "user: Grafana's auth proxy",
    "X-Vouch-User": "user: Vouch Proxy",
    "X-Authentik-Username": "user: authentik",
    "X-Authentik-Email": "user's address: authentik",
    "X-Authentik-Groups": "groups: authentik",
    "X-Authentik-Uid": "user: authentik",
    "X-Authentik-JWT": "token: authentik",
    "X-Pomerium-Jwt-Assertion": "token: Pomerium",
    "X-Pomerium-Claim-Email": "user's address: Pomerium",
    "X-Goog-IAP-JWT-Assertion": "token: Google's Identity-Aware Proxy",
    "X-Goog-Authenticated-User-Email": "user's address: Google's Identity-Aware Proxy",
    "X-Goog-Authenticated-User-Id": "user: Google's Identity-Aware Proxy",
    "X-Amzn-Oidc-Accesstoken": "token: AWS Application Load Balancer",
    "X-Amzn-Oidc-Identity": "user: AWS Application Load Balancer",
    "X-Amzn-Oidc-Data": "claims of the user: AWS Application Load Balancer",
    "X-MS-Client-Principal": "claims of the user: Azure App Service",
    "X-MS-Client-Principal-Id": "user: Azure App Service",
    "X-MS-Client-Principal-Name": "user: Azure App Service",
    "X-MS-Token-AAD-Access-Token": "token: Azure App Service",
    "X-MS-Token-AAD-Id-Token": "token: Azure App Service",
    "Cf-Access-Jwt-Assertion": "token: Cloudflare Access",
    "Cf-Access-Authenticated-User-Email": "user's address: Cloudflare Access",
    "Cf-Access-Client-Id": "service token: Cloudflare Access",
    "Cf-Access-Client-Secret": "service token: Cloudflare Access",
    "Tailscale-User-Login": "user: Tailscale Serve",
    "Tailscale-User-Name": "user's name: Tailscale Serve",
    "Client-Cert": "client's certificate (RFC 9440)",
}

# --- Fields with the requested URL or method, which proxies send and frameworks read -------------
#
# A value that differs from the request's own URL is part of the cache key. The constants define how
# values are compared.
HOST = "host"
SCHEME = "scheme"
TARGET = "target"
VALUE = "value"
PAIRS = "pairs"

REFLECTED_FIELDS: Mapping[str, tuple[str, str]] = {
    "Host": (HOST, "where the host is taken from another field: Django's USE_X_FORWARDED_HOST"),
    "Forwarded": (PAIRS, "host= and proto= (RFC 7239): HAProxy, AWS API Gateway"),
    "X-Forwarded-Host": (HOST, "host: most proxies; Django, Werkzeug's ProxyFix"),
    "X-Forwarded-Server": (VALUE, "the proxy's own name: Apache, Traefik"),
    "X-Original-Host": (HOST, "host: Azure Application Gateway, ingress-nginx"),
    "X-Host": (HOST, "host: Fastly and CDN recipes"),
    "X-HTTP-Host-Override": (HOST, "host: Google's proxies"),
    "X-Envoy-Original-Host": (HOST, "host before a rewrite: Envoy"),
    "X-Forwarded-Proto": (SCHEME, "scheme: most proxies; Django, ProxyFix, uvicorn"),
    "X-Forwarded-Protocol": (SCHEME, "scheme: gunicorn's default list"),
    "X-Forwarded-Scheme": (SCHEME, "scheme: ingress-nginx"),
    "X-Scheme": (SCHEME, "scheme: ingress-nginx, Flask's recipes"),
    "X-Url-Scheme": (SCHEME, "scheme: older proxies"),
    "CloudFront-Forwarded-Proto": (SCHEME, "scheme: CloudFront"),
    "Cf-Visitor": (VALUE, "scheme, as JSON: Cloudflare"),
    "X-Forwarded-Ssl": (VALUE, "whether the scheme is https: gunicorn's default list"),
    "Front-End-Https": (VALUE, "whether the scheme is https: Microsoft's proxies"),
    "X-Forwarded-Port": (VALUE, "port: AWS, ingress-nginx; ProxyFix, Django"),
    "X-Forwarded-Prefix": (VALUE, "mount point: Traefik, Spring; ProxyFix"),
    "X-Script-Name": (VALUE, "mount point: Flask's recipes"),
    "Script-Name": (VALUE, "mount point: gunicorn takes it for SCRIPT_NAME"),
    "Path-Info": (VALUE, "path: gunicorn takes it for PATH_INFO where it is let pass"),
    "X-Forwarded-Path": (TARGET, "path before a rewrite: Kong"),
    "X-Forwarded-Uri": (TARGET, "path and query: Traefik and Caddy forward-auth"),
    "X-Forwarded-Method": (VALUE, "method: Traefik and Caddy forward-auth"),
    "X-Original-Uri": (TARGET, "path and query before a rewrite: ingress-nginx"),
    "X-Original-Url": (TARGET, "path before a rewrite: IIS; Symfony, Zend"),
    "X-Original-Method": (VALUE, "method: ingress-nginx"),
    "X-Rewrite-Url": (TARGET, "path before a rewrite: IIS; Symfony, Zend"),
    "X-Envoy-Original-Path": (TARGET, "path before a rewrite: Envoy"),
    "X-Replaced-Path": (TARGET, "path before a rewrite: Traefik"),
    "X-HTTP-Method-Override": (VALUE, "method: Google's APIs; Django and Flask recipes"),
    "X-HTTP-Method": (VALUE, "method: Microsoft's APIs"),
    "X-Method-Override": (VALUE, "method: IBM's APIs"),
}

# --- Fields with the client's address -----------------------------------------------------------
#
# The address differs between clients, so it cannot be part of the key. In profile "safe", a
# response that shows such an address is not stored, and neither is one for a request with other
# values there.
CLIENT_FIELDS: Mapping[str, str] = {
    "Forwarded": "for= and by= (RFC 7239)",
    "X-Forwarded-For": "most proxies; ProxyFix, uvicorn",
    "X-Original-Forwarded-For": "ingress-nginx",
    "X-Vercel-Forwarded-For": "Vercel",
    "X-Envoy-External-Address": "Envoy",
    "X-Real-Ip": "nginx, Traefik",
    "X-Client-Ip": "Apache's mod_remoteip",
    "Client-Ip": "older proxies",
    "X-Cluster-Client-Ip": "Rackspace, Riverbed",
    "X-Remote-Ip": "recipes",
    "X-Remote-Addr": "recipes",
    "X-Originating-Ip": "Microsoft's proxies",
    "True-Client-Ip": "Akamai, Cloudflare",
    "Cf-Connecting-Ip": "Cloudflare, Render",
    "Cf-Connecting-Ipv6": "Cloudflare",
    "Cf-Pseudo-Ipv4": "Cloudflare",
    "Fastly-Client-Ip": "Fastly",
    "Fly-Client-Ip": "Fly",
    "Do-Connecting-Ip": "DigitalOcean",
    "X-Nf-Client-Connection-Ip": "Netlify",
    "X-Appengine-User-Ip": "App Engine",
    "X-Azure-ClientIp": "Azure Front Door",
    "X-Azure-SocketIp": "Azure Front Door",
    "CloudFront-Viewer-Address": "CloudFront",
}


class KnownFields(Struct, frozen=True):
    """The tables with lower-case names, including the fields of the settings."""

    credentials: Mapping[str, str]
    """By lower-case name, the name in its usual spelling."""
    reflected: Mapping[str, str]
    """By lower-case name, how the value is compared with the request."""
    clients: Mapping[str, str]
    """By lower-case name, the name in its usual spelling."""

    def credential_of(self, headers: Headers, selecting: Iterable[str] = ()) -> str | None:
        """Return the field with which a request identifies its user; None if there is none.

        Empty fields are ignored, and so are fields of ``selecting``, which are part of the key.
        """
        for name in headers.names():
            known = self.credentials.get(name.replace("_", "-"))
            if known and name not in selecting and any(map(str.strip, headers.lines(name))):
                return known
        return None


@lru_cache(maxsize=8)
def known_fields(
    credential_fields: tuple[str, ...] = (), reflected_fields: tuple[str, ...] = ()
) -> KnownFields:
    """Return the tables, including the fields of the settings."""
    credentials = {name.lower(): name for name in (*CREDENTIAL_FIELDS, *credential_fields)}
    reflected = {name.lower(): VALUE for name in reflected_fields}
    reflected |= {name.lower(): kind for name, (kind, _) in REFLECTED_FIELDS.items()}
    return KnownFields(credentials, reflected, {name.lower(): name for name in CLIENT_FIELDS})


# --- Values about the URL and the client --------------------------------------------------------

MAX_REFLECTED_BYTES = 8192
MAX_ADDRESSES = 16
_MAX_ADDRESSES_LENGTH = 2048
_MAX_INFLATED_BYTES = 8 * 1024 * 1024

# A pair in an element of Forwarded (RFC 7239 §4), with its separator. Ports and brackets are often
# sent without the required quotes. No part of the pattern can match in two ways.
_PAIR = re.compile(
    r"""[ \t]*+([!#$%&'*+.^_`|~0-9A-Za-z-]++)=("(?:[^"\\]|\\.)*+"|[^ \t",;\\]*+)[ \t]*+([;,]|\Z)"""
)
_EMPTY_ELEMENT = re.compile(r"[ \t]*+(?:,|\Z)")
_CLIENT_PARAMETERS = frozenset({"for", "by"})
_OBFUSCATED = re.compile(r"_[A-Za-z0-9._-]{1,64}")


def reflected_fields(headers: Headers, known: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Return the name, kind and lines of each field of a request that describes its URL.

    Underscores are treated as hyphens, because a WSGI application inside an ASGI one does so.
    """
    names = headers.names()
    found = sorted(known.keys() & names)
    if "_" in "".join(names):
        found += [name for name in names if "_" in name and name.replace("_", "-") in known]
    return [(name, known[name.replace("_", "-")], "\n".join(headers.lines(name))) for name in found]


def reflected_key(
    request: HTTPRequest, rule: CacheRule, url: str, known: Mapping[str, str]
) -> tuple[str, str]:
    """Return the values of fields that describe another URL than the request's own.

    The first result is the text for the key, the second the reason if the request must bypass the
    cache.
    """
    differing = []
    for name, kind, value in reflected_fields(request.headers, known):
        if len(value) > MAX_REFLECTED_BYTES:
            return "", f"{name} of more than {MAX_REFLECTED_BYTES} bytes"
        text: str | None = value
        if kind == PAIRS:
            text = forwarded_of_url(value.replace("\n", ", "))
            if text is None:
                return "", f"{name} cannot be parsed"
        elif kind == TARGET and value.startswith("/"):
            path, _, query = value.partition("?")
            text = url_text(normal_path(path), normal_query(query, rule))
        own = {HOST: request.host, SCHEME: request.scheme, TARGET: url, PAIRS: ""}.get(kind)
        if "\n" in value:  # some frameworks read only the first of several lines
            differing.append(f"{name}:{value!r}")
        elif text != own and not ((kind == SCHEME or name == "host") and value.lower() == own):
            differing.append(f"{name}:{text}")
    return "\n".join(sorted(differing)), ""


def forwarded_of_url(value: str) -> str | None:
    """Return a Forwarded field without its parameters about clients; None if it is malformed.

    The number of elements does not change. The result is empty if no parameter is left.
    """
    elements = _elements(value)
    if elements is None:
        return None
    kept = [
        ";".join(f"{name}={text}" for name, text in pairs if name not in _CLIENT_PARAMETERS)
        for pairs in elements
    ]
    return ", ".join(text or "for=unknown" for text in kept) if any(kept) else ""


def _elements(value: str) -> list[list[tuple[str, str]]] | None:
    elements: list[list[tuple[str, str]]] = []
    pairs: list[tuple[str, str]] = []
    at = 0
    while at < len(value):
        found = _PAIR.match(value, at)
        if found is not None:
            pairs.append((found[1].lower(), found[2]))
        elif (found := _EMPTY_ELEMENT.match(value, at)) is None or pairs:
            return None
        at = found.end()
        if pairs and (found[0][-1:] == "," or at == len(value)):
            elements.append(pairs)
            pairs = []
    return None if pairs else elements


def client_addresses(
    headers: Headers, selecting: Sequence[str], known: Mapping[str, str]
) -> frozenset[str] | str:
    """Return the client addresses in a request's fields, in each form that a response may show.

    If the fields contain other values, or too many addresses, return the reason not to store the
    response. Fields of ``selecting`` are part of the key, so they are skipped.
    """
    found: set[str] = set()
    for name in headers.names():
        written = known.get(name.replace("_", "-"))
        if written is None or name in selecting:
            continue
        value = headers.combined(name) or ""
        if len(value) > _MAX_ADDRESSES_LENGTH:
            return f"{written} is too long"
        if name == "forwarded":
            pairs = [pair for element in _elements(value) or () for pair in element]
            values = [text for key, text in pairs if key in _CLIENT_PARAMETERS]
        else:
            values = value.split(",")
        for text in (each.strip().strip('"').lower() for each in values):
            if not text:
                continue
            address = None if "%" in text else parse_address(text)  # a zone can be any text
            if address is not None:
                # Without brackets, or an IPv4 address and port.
                bare = text.removeprefix("[").partition("]")[0]
                found |= {str(address), address.exploded, bare, quote(bare, safe="").lower()}
                if ":" in bare:
                    found |= _ipv6_forms(bare)
            elif text == "unknown" or (name == "forwarded" and _OBFUSCATED.fullmatch(text)):
                found.add(text)
            else:
                return f"{written} contains values that are not addresses"
        if len(found) > 2 * MAX_ADDRESSES:
            return f"more than {MAX_ADDRESSES} addresses of clients"
    return frozenset(found)


def _ipv6_forms(text: str) -> set[str]:
    # parse_address returns the IPv4 address of a mapped one.
    try:
        address = IPv6Address(text)
    except ValueError:
        return set()
    return {address.compressed, address.exploded}


def shows_any(texts: frozenset[str], headers: Headers, body: bytes) -> str | None:
    """Return why a response must not be stored because it may show any of these texts, or None.

    A body in gzip or deflate is also searched; other codings are not.
    """
    if not texts:
        return None
    coding = (headers.get("content-encoding") or "").strip().lower()
    if body and coding in {"gzip", "x-gzip", "deflate"}:
        inflating = zlib.decompressobj(zlib.MAX_WBITS | 32)
        try:
            body = inflating.decompress(body, _MAX_INFLATED_BYTES)
        except zlib.error:
            return "a body that cannot be searched for the client's address"
        if inflating.unconsumed_tail:
            return "a body too large to be searched for the client's address"
    searched = b"\n".join([*(value for _, value in headers.raw), body]).lower()
    if any(text.encode("latin-1") in searched for text in texts):
        return "shows the client's address"
    return None
