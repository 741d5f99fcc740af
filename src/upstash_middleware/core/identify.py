"""Identifiers: they determine whose quota a request uses."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard
from urllib.parse import quote, unquote_plus

from msgspec import Struct
from msgspec.structs import replace

from upstash_middleware.core.flow import Resolve, call
from upstash_middleware.errors import ConfigurationError
from upstash_middleware.messages import HTTPRequest, content_length

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_MAX_PLAIN_LENGTH = 128
"""Characters after escaping. Longer values are hashed, which limits the length of Redis keys."""
_MAX_KIND_LENGTH = 64


class Identifier(Struct, frozen=True):
    """A client, as a kind and a value. Equal values of different kinds are different clients."""

    kind: str
    """For instance ``ip``, ``user``, ``header.x-api-key``."""
    value: str
    """The address, the user's id or the API key."""
    secret: bool = False
    """Whether the value is a credential. Secret values are always hashed."""


class Finder(Struct, frozen=True):
    """An extractor whose ``find`` is a flow, because it waits for a body or an async function."""

    async def find(self, request: HTTPRequest) -> Identifier | None:
        """Return the identifier of a request, or None."""
        raise NotImplementedError


ExtractorResult = Identifier | str | int | None
"""The result of an extractor. Text and numbers get the kind ``id`` and are not hashed."""
Extractor = Callable[[HTTPRequest], ExtractorResult | Awaitable[ExtractorResult]]
AnyExtractor = Extractor | Finder


def is_extractor(value: object) -> TypeGuard[AnyExtractor]:
    """Whether a value can be a rule's ``by``."""
    return callable(value) or isinstance(value, Finder)


def takes(function: object, count: int) -> bool:
    """Whether a function accepts this number of positional arguments, by its signature."""
    import inspect  # noqa: PLC0415 - slow to import, and only for functions of the application

    try:
        signature = inspect.signature(function)  # type: ignore[arg-type] # raises if not callable
    except Exception:  # noqa: BLE001 - some C functions and proxies have no signature
        return True
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


async def extract(extractor: AnyExtractor, request: HTTPRequest) -> Identifier | None:
    """Return the identifier that an extractor finds; plain text or a number gets the kind ``id``.

    A flow. Raises TypeError for a result of another type, and the exceptions of the extractor.
    """
    if isinstance(extractor, Finder):
        return await extractor.find(request)
    found: Any = extractor(request)
    if found is None or type(found) is Identifier:  # the most frequent results
        return found
    if isinstance(found, Awaitable):
        found = await Resolve(found)
        if found is None or isinstance(found, Identifier):
            return found
    if isinstance(found, bool) or not isinstance(found, (str, int)):
        raise TypeError(
            f"an extractor should return text, a whole number, an Identifier or None, "
            f"not {type(found).__name__}"
        )
    return Identifier("id", str(found)) if found != "" else None


# ------------------------------------------------------------------------------------------------
# Identifiers in Redis keys


_UNESCAPED = r"[A-Za-z0-9/\-._~!$&'()*+,;=@]*"


def escape(part: str) -> str:
    """Percent-encode one part of a Redis key, so that different parts never give the same key.

    The colon separates the parts of a key, the percent sign begins an escape, and the number sign
    marks a hash. Braces would be interpreted as a hash tag of Redis Cluster.
    """
    if re.fullmatch(_UNESCAPED, part):  # the most frequent case, and faster than quote
        return part
    return quote(part, safe="/-._~!$&'()*+,;=@", errors="surrogatepass")


def key_text(identifier: Identifier, secret: Callable[[], bytes]) -> str:
    """Return the text of an identifier for keys, events and decisions: ``KIND=VALUE``.

    A secret or long value becomes ``KIND=#HASH`` with 128 bits of HMAC-SHA256 under ``secret()``.
    Different identifiers have different texts.
    """
    if not identifier.secret and len(identifier.value) <= _MAX_PLAIN_LENGTH:
        plain = _plain_text(identifier.kind, identifier.value)
        if plain is not None:
            return plain
    import hmac  # noqa: PLC0415 - slow to import, and not needed for addresses

    kind = _escaped_kind(identifier.kind)
    message = f"{kind}={identifier.value}".encode("utf-8", "surrogatepass")
    return f"{kind[:_MAX_KIND_LENGTH]}=#{hmac.digest(secret(), message, 'sha256')[:16].hex()}"


@lru_cache(maxsize=1024)
def _plain_text(kind: str, value: str) -> str | None:
    """Return ``KIND=VALUE``, or None if it would be too long."""
    kind, value = _escaped_kind(kind), escape(value)
    short = len(kind) <= _MAX_KIND_LENGTH and len(value) <= _MAX_PLAIN_LENGTH
    return f"{kind}={value}" if short else None


def _escaped_kind(kind: str) -> str:
    return escape(kind).replace("=", "%3D")


# ------------------------------------------------------------------------------------------------
# Values that a request contains. They are always secret, because they may be credentials. A client
# can send any value; if that matters, verify the credential first, or also limit by address.

_SEVERAL = "(several values)"


class SentValue(Struct, frozen=True):
    """The extractor that ``header``, ``cookie`` and ``query`` return."""

    kind: str
    name: str
    read: Callable[[HTTPRequest, str], list[str]]

    def __repr__(self) -> str:
        return f"{self.kind}({self.name!r})"

    def __call__(self, request: HTTPRequest) -> Identifier | None:
        """Return the value as a secret identifier; None if it is absent or empty.

        Frameworks disagree about which of several values is read. All requests with several
        different values therefore share one quota.
        """
        values = {value for value in self.read(request, self.name) if value}
        if len(values) > 1:
            return Identifier(f"{self.kind}.{self.name}", _SEVERAL)
        return Identifier(f"{self.kind}.{self.name}", values.pop(), secret=True) if values else None


def header(name: str) -> SentValue:
    """Identify by a request header field, for instance ``X-API-Key``.

    Args:
        name: The name of the field, in any case.
    """
    return SentValue("header", _checked_name("header", name).lower(), _header)


def cookie(name: str) -> SentValue:
    """Identify by a cookie.

    Args:
        name: The name of the cookie.
    """
    return SentValue("cookie", _checked_name("cookie", name), _cookie)


def query(name: str) -> SentValue:
    """Identify by a parameter of the URL's query.

    Args:
        name: The name of the parameter.
    """
    return SentValue("query", _checked_name("query", name), _query)


def _checked_name(function: str, name: str) -> str:
    given: object = name
    if not isinstance(given, str) or not name.isascii() or not 0 < len(name) <= 64 or " " in name:
        raise ConfigurationError(
            f"{function}({name!r}): a name should be 1 to 64 ASCII characters without spaces"
        )
    return name


def _header(request: HTTPRequest, name: str) -> list[str]:
    values = [value.strip() for value in request.headers.lines(name)]
    if name in {"authorization", "proxy-authorization"}:
        # RFC 9110 §11.1: the scheme is case-insensitive. Applications split at white space.
        parts = [value.split()[:2] for value in values]
        values = [" ".join([*map(str.lower, each[:1]), *each[1:]]) for each in parts]
    return values


def _cookie(request: HTTPRequest, name: str) -> list[str]:
    values = []
    for line in request.headers.lines("cookie"):
        for pair in line.split(";"):
            key, equals, value = pair.partition("=")
            if equals and key.strip() == name:
                values.append(value.strip().strip('"'))
                if "\\" in value:  # only some frameworks unescape quoted values
                    values.append(_SEVERAL)
    return values


def _query(request: HTTPRequest, name: str) -> list[str]:
    if name not in request.query and "%" not in request.query and "+" not in request.query:
        return []
    return [
        unquote_plus(value)
        for key, _, value in (part.partition("=") for part in request.query.split("&"))
        # An escape has three characters, so a longer key cannot be an escaped form of the name.
        if key == name or (len(key) <= 3 * len(name) and unquote_plus(key) == name)
    ]


# ------------------------------------------------------------------------------------------------
# Values in the body. Requests whose body has no such value share one quota, so that a client cannot
# avoid the limit with a body that is padded, encoded or ambiguous.

_NO_SINGLE_VALUE = "(no single value)"
_MAX_BODY = 64 * 1024
_MAX_OF_MAX_BODY = 16 * 1024 * 1024
_MAX_NORMALISED_LENGTH = 1024
"""Characters of a non-ASCII value: normalising many combining characters takes quadratic time."""


def normalised(text: str) -> str:
    if not text.isascii():
        if len(text) > _MAX_NORMALISED_LENGTH:
            raise ValueError("too long")
        from unicodedata import normalize  # noqa: PLC0415 - rarely needed

        text = normalize("NFKC", normalize("NFKC", text).casefold())
    return text.strip().casefold()


class BodyField(Finder, frozen=True):
    """The extractor that ``form`` and ``json_field`` return."""

    function: str
    name: str
    max_body: int
    normalise: Callable[[str], str] | None

    def __post_init__(self) -> None:
        size: object = self.max_body
        if isinstance(size, bool) or not isinstance(size, int) or not 0 < size <= _MAX_OF_MAX_BODY:
            raise ConfigurationError(
                f"{self.function}({self.name!r}): max_body={size!r} should be a number of bytes "
                f"from 1 to {_MAX_OF_MAX_BODY}"
            )
        given: object = self.normalise
        if given is not None and not callable(given):
            raise ConfigurationError(
                f"{self.function}({self.name!r}): normalise={given!r} should be a function that "
                "takes and returns text, or None"
            )

    def __repr__(self) -> str:
        more = "" if self.max_body == _MAX_BODY else f", max_body={self.max_body!r}"
        if self.normalise is not normalised:
            more += f", normalise={getattr(self.normalise, '__name__', self.normalise)}"
        return f"{self.function}({self.name!r}{more})"

    @property
    def kind(self) -> str:
        """The kind of the identifiers, such as ``form.username`` or ``json.user.name``."""
        return f"{self.function.removesuffix('_field')}.{self.name}"

    async def find(self, request: HTTPRequest) -> Identifier:
        """Return the value as a secret identifier; all requests without a value share one."""
        value = await self._value(request)
        if value is None:
            return Identifier(self.kind, _NO_SINGLE_VALUE)
        return Identifier(self.kind, value, secret=True)

    async def _value(self, request: HTTPRequest) -> str | None:
        from upstash_middleware.core.bodies import (  # noqa: PLC0415 - only some rules need it
            form_values,
            is_encoded,
            json_values,
        )

        body, headers = request.body, request.headers
        if body is None or (content_length(headers) or 0) > self.max_body or is_encoded(headers):
            return None
        try:
            is_form = self.function == "form"
            values = body.parsed(self.name) if is_form else None
            if values is None:
                data = await call(body.read, self.max_body)
                if data is None:
                    return None
                if is_form:
                    values = form_values(headers, data, self.name)
                else:
                    values = json_values(headers, data, tuple(self.name.split(".")))
            (value,) = values
            if self.normalise is not None:
                value = self.normalise(value)
        except Exception:  # noqa: BLE001 - the request still counts, whatever the client sent
            return None
        return value if value and isinstance(value, str) else None


def form(
    name: str, *, max_body: int = _MAX_BODY, normalise: Callable[[str], str] | None = normalised
) -> BodyField:
    """Identify by a field of a form in the request's body, urlencoded or multipart.

    All requests without exactly one value share a quota. Examples: another content type, no such
    field or several, a body that is too long, or a body that parsers interpret differently. The
    application can read the body as usual.

    Args:
        name: The field's name, as in ``<input name="username">``.
        max_body: The largest body that is read, in bytes.
        normalise: A function that returns one spelling of a value. The default removes surrounding
            white space and case, and applies Unicode's form NFKC. None uses the value unchanged.
            If the function raises, the request has no value.

    Raises:
        ConfigurationError: A value is wrong.
    """
    return BodyField("form", _checked_name("form", name), max_body, normalise)


def json_field(
    path: str, *, max_body: int = _MAX_BODY, normalise: Callable[[str], str] | None = normalised
) -> BodyField:
    """Identify by a string or an integer in the JSON body of the request.

    The Content-Type does not matter, except that a form has no value, because the application may
    read the body as a form. The rest is described at ``form``.

    Args:
        path: The names of nested members, separated by dots, such as ``user.name``.
        max_body: The largest body that is read, in bytes; default 64 KiB.
        normalise: See ``form``.

    Raises:
        ConfigurationError: A value is wrong.
    """
    given: object = path
    if not isinstance(given, str) or not all(path.split(".")) or len(path) > 64:
        raise ConfigurationError(
            f"json_field({path!r}): should be the names of members separated by dots, such as "
            "'user.name', at most 64 characters"
        )
    return BodyField("json_field", path, max_body, normalise)


def needs_user(extractor: AnyExtractor) -> bool:
    """Whether an extractor is ``"user"``, or combines it with others."""
    return any(part is framework_user for part in _parts_of(extractor))


def reads_body(extractor: AnyExtractor) -> bool:
    """Whether an extractor, or any part of a combined extractor, reads the request's body."""
    return any(isinstance(part, BodyField) for part in _parts_of(extractor))


USERS: list[tuple[Callable[[Any], bool], Callable[[HTTPRequest], Any]]] = []
"""For each framework, a check for the type of its requests, and its extractor ``user``."""


def framework_user(request: HTTPRequest) -> Any:
    """Identify by the framework's logged-in user; ``by="user"`` selects this extractor.

    Raises LookupError if the framework has no users.
    """
    for is_its_request, user in USERS:
        if is_its_request(request.native):
            return user(request)
    raise LookupError(
        "by='user' is not supported in this framework; give a function of the request instead"
    )


# ------------------------------------------------------------------------------------------------
# The client's address: from the connection, or from a header field that a trusted proxy sets.
#
# A forwarded header is read from its right end, where the nearest proxy appends. Entries to the
# left of the trusted proxies may have been sent by the client (RFC 7239 §8.1).

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_IPV6_PREFIX = 64
_MAX_CHAIN_LENGTH = 4096
"""The number of characters of a forwarded header that are read, from its right end."""


class Platform(NamedTuple):
    """Where a hosting platform puts the client's address, and how the platform is detected."""

    title: str
    header: str
    """The field that its proxy sets; empty if the address is in the event of AWS Lambda."""
    says: str
    """A summary of what the platform's documentation says about the field."""
    documentation: str
    variables: tuple[str, ...] = ()
    """All environment variables by which it is detected; empty if it documents none."""
    hops: int = 1
    """The position of the client's entry in the field, from the right; 1 is the last."""
    automatic: bool = False
    """Whether detection alone enables it: the platform documents that its proxy overwrites the
    field, and its variables are not set on developers' machines."""
    unless: tuple[tuple[str, str], ...] = ()
    """Values of variables that indicate a developer's machine."""


PLATFORMS = {
    "vercel": Platform(
        "Vercel",
        "x-real-ip",
        "it replaces what was sent, also behind another proxy",
        "https://vercel.com/docs/headers/request-headers",
        ("VERCEL", "VERCEL_REGION"),
        automatic=True,
        # `vercel dev` and `vercel env pull` may also set VERCEL.
        unless=(("VERCEL_ENV", "development"), ("VERCEL_REGION", "dev1")),
    ),
    "fly": Platform(
        "Fly",
        "fly-client-ip",
        "it is the address that connects to Fly's proxy, also behind another proxy",
        "https://fly.io/docs/networking/request-headers/",
        ("FLY_APP_NAME", "FLY_MACHINE_ID"),
        automatic=True,
    ),
    "aws-lambda": Platform(
        "AWS Lambda",
        "",
        "API Gateway and function URLs put the address into the event",
        "https://docs.aws.amazon.com/lambda/latest/dg/urls-invocation.html",
        ("AWS_LAMBDA_FUNCTION_NAME",),
        hops=0,
        automatic=True,
    ),
    "aws": Platform(
        "AWS, a load balancer",
        "x-forwarded-for",
        "the load balancer appends the address that connects to it",
        "https://docs.aws.amazon.com/elasticloadbalancing/latest/application/x-forwarded-headers.html",
    ),
    "azure-app-service": Platform(
        "Azure App Service",
        "x-forwarded-for",
        "the client's address is added to it",
        "https://learn.microsoft.com/azure/app-service/app-service-ip-restrictions",
        ("WEBSITE_SITE_NAME", "WEBSITE_INSTANCE_ID"),
    ),
    "cloudflare": Platform(
        "Cloudflare",
        "cf-connecting-ip",
        "it is the address that connects to Cloudflare",
        "https://developers.cloudflare.com/fundamentals/reference/http-headers/",
    ),
    "digitalocean": Platform(
        "DigitalOcean App Platform",
        "do-connecting-ip",
        "it is the client's address",
        "https://docs.digitalocean.com/support/where-can-i-find-the-client-ip-address-of-a-request-connecting-to-my-app/",
    ),
    "google-cloud-run": Platform(
        "Google Cloud Run",
        "x-forwarded-for",
        "the front end adds the client's address at the end",
        "https://cloud.google.com/run/docs/container-contract",
        ("K_SERVICE", "K_REVISION"),
    ),
    "google-cloud-load-balancer": Platform(
        "Google Cloud Run behind an external load balancer",
        "x-forwarded-for",
        "the load balancer appends the client's address and its own",
        "https://cloud.google.com/load-balancing/docs/https#x-forwarded-for_header",
        hops=2,
    ),
    "heroku": Platform(
        "Heroku",
        "x-forwarded-for",
        "it has the address that connects to the router, at the end",
        "https://devcenter.heroku.com/articles/http-routing#heroku-headers",
        ("DYNO",),
    ),
    "koyeb": Platform(
        "Koyeb",
        "x-forwarded-for",
        "it contains the client's address",
        "https://www.koyeb.com/docs/reference/edge-network",
        ("KOYEB_APP_NAME",),
    ),
    "railway": Platform(
        "Railway",
        "x-real-ip",
        "it is the client's address",
        "https://docs.railway.com/networking/public-networking/specs-and-limits",
        ("RAILWAY_PROJECT_ID",),  # `railway run` also sets it
    ),
    "render": Platform(
        "Render",
        "cf-connecting-ip",
        "all requests pass through Cloudflare's network",
        "https://render.com/docs/ddos-protection",
        ("RENDER",),
    ),
}
"""Presets of ``client_ip(platform=…)``. They require that no request bypasses the proxy."""


def detected_platform(environ: Mapping[str, str]) -> str | None:
    """Return the name of the platform whose variables are set; None if none is detected."""
    for name, platform in PLATFORMS.items():
        if (
            platform.variables
            and all(environ.get(variable) for variable in platform.variables)
            and not any(environ.get(variable) == value for variable, value in platform.unless)
        ):
            return name
    return None


class ClientAddress(Struct, frozen=True):
    """The extractor that ``client_ip`` returns."""

    header: str | None
    hops: int
    networks: tuple[Network, ...]
    ipv6_prefix: int

    def __repr__(self) -> str:
        arguments = self._arguments()
        if self.ipv6_prefix != _IPV6_PREFIX:
            arguments.append(f"ipv6_prefix={self.ipv6_prefix}")
        return f"client_ip({', '.join(arguments)})"

    def _arguments(self) -> list[str]:
        arguments = []
        if self.hops:
            arguments.append(f"trusted_hops={self.hops}")
        if self.networks:
            arguments.append(f"trusted={[*map(str, self.networks)]}")
        if self.header not in {None, "x-forwarded-for"}:
            arguments.append(f"header={self.header!r}")
        return arguments

    def __call__(self, request: HTTPRequest) -> Identifier | None:
        """Return the client's address as an identifier; without a trusted proxy, the peer's."""
        if self.header is None:
            return _address_identifier(request.peer or "", self.ipv6_prefix)
        address = self.address(request)
        return None if address is None else address_identifier(address, self.ipv6_prefix)

    def address(self, request: HTTPRequest) -> Address | None:
        """Return the client's address, or None if the peer has no address either."""
        peer = parse_address(request.peer or "")
        if self.header is None:
            return peer
        chain = _chain(self.header, request)
        if self.networks:
            return _first_untrusted(chain, peer, self.networks)
        for entry in chain[-self.hops :] if len(chain) >= self.hops else ():
            if address := parse_address(entry):
                return address
        return peer


class BehindLoadBalancer(ClientAddress, frozen=True):
    """The preset ``aws``. It raises an error if the client may have sent the last entry."""

    def _arguments(self) -> list[str]:
        return ["platform='aws'"]

    def address(self, request: HTTPRequest) -> Address | None:
        """Return the client's address. Raises ConfigurationError if AWS Lambda sent an event."""
        if event_source(request) is not None or _is_adapted_url(request):
            raise ConfigurationError(
                "client_ip='aws': this request came through a function URL or API Gateway, where "
                "the last address of X-Forwarded-For may be forged by the client, or may be "
                "CloudFront's; set client_ip='aws-lambda', which reads the event"
            )
        return super().address(request)


def _is_adapted_url(request: HTTPRequest) -> bool:
    """Whether a request came through a function URL and the Lambda Web Adapter, without the event.

    The adapter connects from the loopback address. Other peers can forge the Host field.
    """
    by_url = ".lambda-url." in request.host and ".on.aws" in request.host
    peer = parse_address(request.peer or "") if by_url else None
    return peer is not None and peer.is_loopback


class EventSource(Struct, frozen=True):
    """The client's address in the event of AWS Lambda. Header fields are not read.

    If the application is called without an event, the address of the connection is used.
    """

    ipv6_prefix: int

    def __repr__(self) -> str:
        prefix = "" if self.ipv6_prefix == _IPV6_PREFIX else f", ipv6_prefix={self.ipv6_prefix}"
        return f"client_ip(platform='aws-lambda'{prefix})"

    def __call__(self, request: HTTPRequest) -> Identifier | None:
        """Return the address as an identifier; events without an address share one identifier."""
        address = self.address(request)
        if address is not None:
            return address_identifier(address, self.ipv6_prefix)
        return None if lambda_event(request) is None else _WITHOUT_SOURCE

    def address(self, request: HTTPRequest) -> Address | None:
        """Return the address; None if the event has no address, such as a load balancer's event."""
        if lambda_event(request) is None:
            return parse_address(request.peer or "")
        return parse_address(event_source(request) or "")


_WITHOUT_SOURCE = Identifier("peer", "(no source address)")


def lambda_event(request: HTTPRequest) -> Mapping[str, Any] | None:
    """Return the event for which AWS Lambda calls the application; None outside of Lambda."""
    around = _server_mapping(request.native)
    for name in _LAMBDA_EVENT_KEYS:
        event = around.get(name)
        if isinstance(event, Mapping):
            return event
    return None


_LAMBDA_EVENT_KEYS = ("aws.event", "apig_wsgi.full_event", "serverless.event", "awsgi.event")
"""The keys under which Mangum, apig-wsgi, serverless-wsgi and aws-wsgi store the event."""


def event_source(request: HTTPRequest) -> str | None:
    """Return ``sourceIp`` of the event, in payload format 1.0 or 2.0; None if it is missing."""
    context = _mapping((lambda_event(request) or {}).get("requestContext"))
    for part in ("http", "identity"):
        if source := _mapping(context.get(part)).get("sourceIp"):
            return str(source)
    return None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _server_mapping(native: Any) -> Mapping[str, Any]:
    """Return the ASGI scope or WSGI environ of a framework's request."""
    for known in (native, getattr(native, "scope", None), getattr(native, "META", None)):
        if isinstance(known, Mapping):
            return known
    return {}


def client_ip(
    *,
    trusted_hops: int = 0,
    trusted: Iterable[str] = (),
    platform: str | None = None,
    header: str | None = None,
    ipv6_prefix: int = _IPV6_PREFIX,
) -> ClientAddress | EventSource:
    """Identify by the client's address. Without arguments, the setting ``client_ip`` applies.

    For a rule with different proxies, give ``trusted_hops``, ``trusted`` or ``platform``.

    Args:
        trusted_hops: The number of proxies in front of the application.
        trusted: The networks of the proxies, such as ``"10.0.0.0/8"``.
        platform: A name of ``PLATFORMS``.
        header: The field that the proxies set: ``x-forwarded-for`` (the default), ``forwarded``
            (RFC 7239) or another. A list is read from its right end.
        ipv6_prefix: The length of the IPv6 network that counts as one client, in bits.

    Raises:
        ConfigurationError: A value is invalid, or several of the first three are given.
    """
    given: object = trusted
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise ConfigurationError(
            f"client_ip: trusted={trusted!r} should be a sequence such as ('10.0.0.0/8',)"
        )
    networks = []
    for text in trusted:
        try:
            networks.append(ipaddress.ip_network(str(text)))  # ip_network also accepts a number
        except ValueError as error:
            raise ConfigurationError(
                f"client_ip: trusted network {text!r}: {error}; write for instance '10.0.0.0/8'"
            ) from None
    for name, number in (("trusted_hops", trusted_hops), ("ipv6_prefix", ipv6_prefix)):
        whole: object = number
        if isinstance(whole, bool) or not isinstance(whole, int):
            raise ConfigurationError(f"client_ip: {name}={number!r} should be a whole number")
    if sum((bool(trusted_hops), bool(networks), platform is not None)) > 1:
        raise ConfigurationError(
            "client_ip: trusted_hops, trusted and platform exclude each other; give only one"
        )
    if not 0 <= trusted_hops <= 32 or not 16 <= ipv6_prefix <= 128:
        raise ConfigurationError(
            f"client_ip: trusted_hops={trusted_hops!r} should be from 0 to 32, "
            f"ipv6_prefix={ipv6_prefix!r} from 16 to 128"
        )
    if platform is not None:
        if platform not in PLATFORMS:
            raise ConfigurationError(
                f"client_ip: unknown platform {platform!r}{_did_you_mean(platform)}; "
                f"known: {', '.join(PLATFORMS)}"
            )
        preset = PLATFORMS[platform]
        if not preset.header:
            return EventSource(ipv6_prefix)
        kind = BehindLoadBalancer if platform == "aws" else ClientAddress
        return kind(preset.header, preset.hops, (), ipv6_prefix)
    if trusted_hops or networks:
        name = (header or "x-forwarded-for").lower()
        return ClientAddress(name, trusted_hops, tuple(networks), ipv6_prefix)
    if header is not None:
        raise ConfigurationError(
            f"client_ip: header={header!r} needs a trusted proxy that writes it; set "
            "trusted_hops=1 or trusted=('10.0.0.0/8',)"
        )
    return ClientAddress(None, 0, (), ipv6_prefix)


def _did_you_mean(platform: object) -> str:
    import difflib  # noqa: PLC0415 - only for error messages

    close = difflib.get_close_matches(str(platform).lower(), PLATFORMS, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _parse_network(text: str) -> Network | None:
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        return None


def peer_address(request: HTTPRequest, ipv6_prefix: int = _IPV6_PREFIX) -> Identifier | None:
    """Return the peer's address as an identifier; None if it is unknown."""
    if not request.peer:
        return None
    return _address_identifier(request.peer, ipv6_prefix) or Identifier("peer", request.peer)


def _address_identifier(text: str, ipv6_prefix: int) -> Identifier | None:
    return (
        _short_address_identifier(text, ipv6_prefix) if len(text) <= _MAX_ADDRESS_LENGTH else None
    )


@lru_cache(maxsize=4096)
def _short_address_identifier(text: str, ipv6_prefix: int) -> Identifier | None:
    address = parse_address(text)
    return None if address is None else address_identifier(address, ipv6_prefix)


def address_identifier(address: Address, ipv6_prefix: int) -> Identifier:
    """Return the identifier of an address; an IPv6 address is identified by its network."""
    if address.version == 4 or ipv6_prefix == 128:
        return Identifier("ip", str(address))
    return Identifier("ip", str(ipaddress.ip_network((address, ipv6_prefix), strict=False)))


_WITH_PORT = r"([0-9.]+):[0-9]{1,5}|\[([^\]]*)\](?::[0-9]{1,5})?"
_MAX_ADDRESS_LENGTH = 64
"""Characters of an address. Longer text is not cached, because any client can send it."""


def parse_address(text: str) -> Address | None:
    """Parse an address in any form that proxies send: with a port, brackets, quotes or a zone.

    Returns None for other text, such as ``unknown``. IPv4-mapped addresses become IPv4 addresses.
    """
    text = text.strip().strip('"')
    return _parse_short(text) if len(text) <= _MAX_ADDRESS_LENGTH else None


@lru_cache(maxsize=4096)
def _parse_short(text: str) -> Address | None:
    if found := re.fullmatch(_WITH_PORT, text):
        text = found[1] or found[2] or ""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _chain(header: str, request: HTTPRequest) -> list[str]:
    """Return the entries of a forwarded header; the nearest proxy's entry is last."""
    value = request.headers.combined(header)
    if value is None:
        return []
    if len(value) > _MAX_CHAIN_LENGTH:  # the left part can only come from the client
        value = value[-_MAX_CHAIN_LENGTH:].partition(",")[2]
    if header != "forwarded":
        return value.split(",")
    return [_forwarded_for(element) for element in _split_from_right(value, ",")]


def _forwarded_for(element: str) -> str:
    """Return ``for`` of an element of Forwarded; ``unknown`` if it is missing."""
    for pair in _split_from_right(element, ";"):
        name, _, value = pair.partition("=")
        if name.strip().lower() == "for":
            return value
    return "unknown"


def _split_from_right(text: str, separator: str) -> list[str]:
    """Split outside of quoted strings (RFC 9110 §5.6.4), scanning from the right.

    If a client sends an unterminated quote, it cannot hide the entries that proxies append.
    """
    parts, end, quoted = [], len(text), False
    for index in range(len(text) - 1, -1, -1):
        if text[index] == '"' and not _is_escaped(text, index):
            quoted = not quoted
        elif text[index] == separator and not quoted:
            parts.append(text[index + 1 : end])
            end = index
    return [*parts, text[:end]][::-1]


def _is_escaped(text: str, index: int) -> bool:
    start = index
    while start and text[start - 1] == "\\":
        start -= 1
    return (index - start) % 2 == 1


def _first_untrusted(
    chain: list[str], peer: Address | None, networks: tuple[Network, ...]
) -> Address | None:
    """Return the first address from the right, beginning with the peer, that is not trusted."""
    found = peer
    for entry in reversed(chain):
        # A peer without an address is a Unix socket, which only a local proxy can use.
        if found is not None and not any(found in network for network in networks):
            break
        address = parse_address(entry)
        if address is None:
            break
        found = address
    return found


# ------------------------------------------------------------------------------------------------
# The setting ``client_ip``: the client's address for all rules


class FoundAddress(Finder, frozen=True):
    """An extractor of the application as the setting ``client_ip``; its result is an address."""

    extractor: AnyExtractor

    async def find(self, request: HTTPRequest) -> Identifier | None:
        """Return the address that the extractor finds; its identifier if that is not an address."""
        found = await extract(self.extractor, request)
        if found is None:
            return None
        if address := _address_identifier(found.value, _IPV6_PREFIX):
            return replace(address, secret=found.secret)
        if found.kind == "ip" and _parse_network(found.value) is None:
            return replace(found, kind="id")
        return found


async def full_address(extractor: AnyExtractor, request: HTTPRequest) -> str | None:
    """Return the client's full address; for IPv6, ``find`` only returns the network.

    A flow. Raises the exceptions of the extractor.
    """
    if isinstance(extractor, ClientAddress | EventSource):
        address = extractor.address(request)
        return None if address is None else str(address)
    if isinstance(extractor, FoundAddress):
        extractor = extractor.extractor
    found = await extract(extractor, request)
    return None if found is None else str(parse_address(found.value) or found.value)


def address_setting(name: str, value: Any) -> AnyExtractor | None:
    """Return the extractor for a value of the setting ``client_ip``.

    Raises ConfigurationError.
    """
    if value is None or isinstance(value, ClientAddress | EventSource):
        return value
    if is_extractor(value):
        return FoundAddress(value)
    try:
        if isinstance(value, int) and not isinstance(value, bool):
            return client_ip(trusted_hops=value)
        if isinstance(value, str) and value in PLATFORMS:
            return client_ip(platform=value)
        networks = [value] if isinstance(value, str) else value
        is_list = isinstance(networks, list | tuple) and bool(networks)
        if is_list and all(isinstance(network, str) for network in networks):
            return client_ip(trusted=networks)
    except ConfigurationError as error:
        known = ", ".join(PLATFORMS)
        is_number = isinstance(value, str) and value.isdecimal()
        hint = f"; write the number without quotes: {value}" if is_number else _did_you_mean(value)
        raise ConfigurationError(f"{name} = {value!r}: {error}{hint}; platforms: {known}") from None
    raise ConfigurationError(
        f"{name} = {value!r}: should be the number of proxies in front, their networks such as "
        f"'10.0.0.0/8', a platform ({', '.join(PLATFORMS)}), client_ip(...), or a function of "
        "the request"
    )


def application_address(
    given: AnyExtractor | None, platform: str | None
) -> tuple[AnyExtractor, bool]:
    """Return the application's extractor from the setting, or else from the detected platform.

    The second value is whether to check requests for signs that the setting is missing.
    """
    if given is not None:
        return given, False
    if platform is not None and PLATFORMS[platform].automatic:
        # The event of a load balancer has no source address.
        return client_ip(platform=platform), platform == "aws-lambda"
    return client_ip(), True


def application_client_ip_of(extractor: AnyExtractor) -> ClientAddress | EventSource | None:
    """Return the first ``client_ip(…)`` with arguments in an extractor and its parts."""
    for part in _parts_of(extractor):
        if isinstance(part, EventSource):
            return part
        if isinstance(part, ClientAddress) and part.header is not None:
            return part
    return None


def in_application(extractor: AnyExtractor, address: AnyExtractor) -> AnyExtractor:
    """Return an extractor whose parts ``client_ip()`` are replaced by the application's address."""
    match extractor:
        case ClientAddress(header=None, ipv6_prefix=prefix):
            if prefix != _IPV6_PREFIX and isinstance(address, ClientAddress | EventSource):
                return replace(address, ipv6_prefix=prefix)
            return address
        case Combined(parts):
            return Combined(tuple(in_application(part, address) for part in parts))
        case FirstOf(parts):
            return FirstOf(tuple(in_application(part, address) for part in parts))
        case Hashed(part):
            return Hashed(in_application(part, address))
        case _:
            return extractor


_PRIVATE = tuple(
    map(
        ipaddress.ip_network,
        (
            *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"),
            *("127.0.0.0/8", "169.254.0.0/16", "fc00::/7", "fe80::/10", "::1/128"),
        ),
    )
)
_FORWARDED = ("x-forwarded-for", "forwarded", "x-real-ip")


@lru_cache(maxsize=1024)
def _is_private(address: Address) -> bool:
    return any(address in network for network in _PRIVATE)


def address_advice(request: HTTPRequest, platform: str | None) -> str | None:
    """Return advice on ``client_ip`` if a request came through a proxy that is not configured.

    Used if the setting is missing; ``platform`` is the detected platform. The number of proxies is
    counted from the right, so a client with a public address cannot increase it.
    """
    if platform == "aws-lambda":
        return _advice_on_lambda(request)
    if "werkzeug.proxy_fix.orig" in _server_mapping(
        request.native
    ):  # the connection has the client's address
        return None
    peer = parse_address(request.peer or "")
    sent = [name for name in _FORWARDED if name in request.headers]
    if not _is_ignored_proxy(request, peer, sent):
        return None
    where = "a connection without an address" if peer is None else str(peer)
    if platform is not None:
        known = PLATFORMS[platform]
        balanced = ", or 'google-cloud-load-balancer' behind a load balancer"
        balanced = balanced if platform == "google-cloud-run" else ""
        return (
            f"this runs on {known.title}, and all clients share the quota of its proxy, {where}: "
            f"set client_ip={platform!r}{balanced} (with another proxy in front, see "
            f"{known.documentation})"
        )
    if peer is not None and not _is_private(peer):
        return (
            f"requests from {where} carry {sent[0].title()}, which is not trusted: if this address "
            f"is your proxy, which appends to the field, set client_ip={str(peer)!r}, or the "
            "proxy's networks; if clients connect directly, set client_ip=0"
        )
    if sent and sent[0] != "x-real-ip":
        advice = (
            f"requests come from {where} and carry {sent[0].title()}, which is not trusted: if "
            "this is a proxy that appends to it, all clients share its quota, so set "
        )
    else:
        advice = (
            f"requests come from {where} without X-Forwarded-For: if this is a proxy, all clients "
            "share its quota, so configure it to append to X-Forwarded-For, and set "
        )
    advice += f"client_ip={_hops_of(request)}; if clients connect directly, set client_ip=0"
    if "do-connecting-ip" in request.headers:
        advice += "; on DigitalOcean App Platform, set client_ip='digitalocean'"
    return advice


def _is_ignored_proxy(request: HTTPRequest, peer: Address | None, sent: list[str]) -> bool:
    """Whether the peer is probably a proxy, judging by its address and by forwarded fields."""
    if peer is None:  # a Unix socket, or the name that a test client uses
        return bool(sent) and not request.peer
    if not sent:  # the loopback address means local development
        return _is_private(peer) and not peer.is_loopback
    # Some servers already replace the peer's address with the one in such a field.
    entries = [entry for name in sent for entry in _chain(name, request)]
    return peer not in map(parse_address, entries)


def _hops_of(request: HTTPRequest) -> str:
    """Return a value of ``client_ip`` that covers the proxies with private addresses."""
    if "x-forwarded-for" not in request.headers and "forwarded" in request.headers:
        return "client_ip(trusted_hops=1, header='Forwarded')"
    entries = [*map(parse_address, _chain("x-forwarded-for", request))]
    for hops, entry in enumerate(reversed(entries), 1):
        if entry is None:
            break
        if not _is_private(entry):
            return str(hops)
    return "1"  # the request does not show which private addresses are proxies


def _advice_on_lambda(request: HTTPRequest) -> str | None:
    if lambda_event(request) is None:
        return (
            "this runs on AWS Lambda, but the application is called without the event: set "
            "client_ip to a function of the request that returns the event's source address"
        )
    if event_source(request) is None:
        return (
            "this runs on AWS Lambda, and the event has no source address, so all such requests "
            "share one quota: behind a load balancer, set client_ip='aws'"
        )
    return None


# ------------------------------------------------------------------------------------------------
# Extractors that are flows: JSON Web Tokens, and combined extractors

Verify = Callable[[str], Mapping[str, Any] | Awaitable[Mapping[str, Any]]]


class JwtClaim(Finder, frozen=True):
    """The extractor that ``jwt_claim`` returns."""

    claim: str
    verify: Verify
    header: str

    async def find(self, request: HTTPRequest) -> Identifier | None:
        """Return the claim as a secret identifier; None without a valid token."""
        kind = f"jwt.{self.claim}"
        if len(set(request.headers.lines(self.header))) > 1:
            return Identifier(kind, _SEVERAL)
        # RFC 6750 §2.1, or a field that contains only the token.
        scheme, _, token = (request.headers.get(self.header) or "").strip().rpartition(" ")
        if not token or scheme.strip().lower() not in {"", "bearer"}:
            return None
        try:
            claims = await call(self.verify, token)
        except Exception:  # noqa: BLE001 - each JWT library has its own exceptions
            return None
        value = claims.get(self.claim)
        return None if value in {None, ""} else Identifier(kind, str(value), secret=True)


def jwt_claim(claim: str, verify: Verify, *, header: str = "Authorization") -> JwtClaim:
    """Identify by a claim of the bearer token in a header field.

    If the token is missing or invalid, this extractor finds no identifier.

    Args:
        claim: The name of the claim, such as ``"sub"``.
        verify: A function, sync or async, that returns the claims of a valid token and raises for
            an invalid one: ``lambda token: jwt.decode(token, key, algorithms=["RS256"])`` (PyJWT).
        header: The field with the token; default ``Authorization``.

    Raises:
        ConfigurationError: A value is wrong.
    """
    given: object = verify
    if not callable(given) or not claim:
        raise ConfigurationError(
            f"jwt_claim({claim!r}, {verify!r}): needs the name of a claim, and a function that "
            "verifies a token and returns its claims"
        )
    return JwtClaim(claim, verify, header.lower())


class Combined(Finder, frozen=True):
    """The extractor that ``combine`` returns."""

    extractors: tuple[AnyExtractor, ...]

    def __repr__(self) -> str:
        return f"combine({', '.join(map(repr, self.extractors))})"

    async def find(self, request: HTTPRequest) -> Identifier | None:
        """Return one identifier made of all the extractors' identifiers; None if any is missing."""
        parts = [await extract(extractor, request) for extractor in self.extractors]
        found = [part for part in parts if part is not None]
        return joined(found) if len(found) == len(parts) else None


class FirstOf(Finder, frozen=True):
    """The extractor that ``first_of`` returns."""

    extractors: tuple[AnyExtractor, ...]

    def __repr__(self) -> str:
        return f"first_of({', '.join(map(repr, self.extractors))})"

    async def find(self, request: HTTPRequest) -> Identifier | None:
        """Return the first identifier that any of the extractors finds."""
        for extractor in self.extractors:
            if found := await extract(extractor, request):
                return found
        return None


class Hashed(Finder, frozen=True):
    """The extractor that ``hashed`` returns."""

    extractor: AnyExtractor

    def __repr__(self) -> str:
        return f"hashed({self.extractor!r})"

    async def find(self, request: HTTPRequest) -> Identifier | None:
        """Return the extractor's identifier, marked as secret so that its value is hashed."""
        found = await extract(self.extractor, request)
        return Identifier(found.kind, found.value, secret=True) if found else None


def combine(*extractors: AnyExtractor | str) -> Combined:
    """Identify by several values at once, such as one quota for each pair of address and account.

    Args:
        *extractors: Extractors, functions of the request, or text such as ``"header:X-API-Key"``.
    """
    return Combined(_check_extractors("combine", extractors))


def first_of(*extractors: AnyExtractor | str) -> FirstOf:
    """Identify by the first of several values that a request has.

    Args:
        *extractors: Extractors, functions of the request, or text such as ``"header:X-API-Key"``.
            The first one that finds a value is used.
    """
    return FirstOf(_check_extractors("first_of", extractors))


def hashed(extractor: AnyExtractor | str) -> Hashed:
    """Hash the values of a custom extractor that returns credentials or personal data.

    Args:
        extractor: The extractor, a function of the request, or text that names one.
    """
    return Hashed(*_check_extractors("hashed", (extractor,)))


def _check_extractors(
    function: str, given: tuple[AnyExtractor | str, ...]
) -> tuple[AnyExtractor, ...]:
    extractors: list[AnyExtractor] = []
    for each in given:
        if isinstance(each, str):
            try:
                extractors.append(extractor_named(each))
            except ConfigurationError as error:
                raise ConfigurationError(f"{function}({each!r}): {error}") from None
        elif is_extractor(each):
            extractors.append(each)
        else:
            raise ConfigurationError(
                f"{function}: {each!r} should be an extractor such as header('X-API-Key')"
            )
    if not extractors:
        raise ConfigurationError(f"{function}: give at least one extractor")
    return tuple(extractors)


def _parts_of(extractor: AnyExtractor) -> Iterator[AnyExtractor]:
    """Yield the innermost parts of a combined extractor; the extractor itself if not combined."""
    match extractor:
        case Combined(parts) | FirstOf(parts):
            for part in parts:
                yield from _parts_of(part)
        case Hashed(part) | FoundAddress(part):
            yield from _parts_of(part)
        case _:
            yield extractor


def joined(parts: Sequence[Identifier]) -> Identifier:
    """Return the identifier that ``combine`` makes of several."""
    # Each value follows its length, so that different lists have different texts.
    value = "&".join(f"{len(part.value)}.{part.value}" for part in parts)
    kind = "+".join(part.kind for part in parts)
    return Identifier(kind, value, secret=any(part.secret for part in parts))


def kinds_of(extractor: AnyExtractor) -> list[str] | None:
    """Return the kinds of the identifiers that an extractor can find; None if unknown.

    If the extractor may find nothing, the kind of the client's address is included.
    """
    kinds = _kinds_of(extractor)
    surely = BodyField | ClientAddress | EventSource
    if kinds is None or all(isinstance(part, surely) for part in _parts_of(extractor)):
        return kinds
    return [*kinds, "ip"]


def _kinds_of(extractor: AnyExtractor) -> list[str] | None:
    match extractor:
        case EventSource():
            return ["ip", _WITHOUT_SOURCE.kind]
        case ClientAddress():
            return ["ip"]
        case Combined(parts):
            kinds = [_kinds_of(part) for part in parts]
            several = product(*(each or () for each in kinds))
            return None if None in kinds else list(map("+".join, several))
        case FirstOf(parts):
            kinds = [_kinds_of(part) for part in parts]
            return None if None in kinds else [kind for each in kinds for kind in each or ()]
        case Hashed(part):
            return _kinds_of(part)
        case _:
            kind = _extractor_kind(extractor)
            return None if kind == "id" else [kind]


_SECRET_KINDS = frozenset({"header", "cookie", "query", "form", "json", "jwt"})


def identifier_of(extractor: AnyExtractor, kind: str | None, value: str) -> Identifier:
    """Return the identifier of a request with this value; ``value`` is plain text.

    If ``kind`` is None, the extractor's kind is used, or ``id`` if it has several or an unknown
    one. Raises the exceptions of the ``normalise`` of a ``form`` or ``json_field``.
    """
    kind = kind or _extractor_kind(extractor)
    for part in _parts_of(extractor):
        if isinstance(part, BodyField) and part.kind == kind and part.normalise is not None:
            value = part.normalise(value)
    is_secret = kind.partition(".")[0] in _SECRET_KINDS or isinstance(extractor, Hashed)
    return Identifier(kind, value, secret=is_secret)


def _extractor_kind(extractor: AnyExtractor) -> str:
    match extractor:
        case BodyField():
            return extractor.kind
        case SentValue():
            return f"{extractor.kind}.{extractor.name}"
        case JwtClaim():
            return f"jwt.{extractor.claim}"
        case _:
            users = (framework_user, *(of_framework for _, of_framework in USERS))
            return "user" if extractor in users else "id"


# ------------------------------------------------------------------------------------------------
# Extractors as text in settings


def extractor_named(text: str) -> AnyExtractor:
    """Return the extractor for text such as ``header:X-API-Key``.

    Raises ConfigurationError with a suggestion.
    """
    name, colon, argument = text.partition(":")
    if text in _WITHOUT_ARGUMENT:
        return _WITHOUT_ARGUMENT[text]()
    if name == "client_ip" and argument.isdecimal():
        return client_ip(trusted_hops=int(argument))
    if name in _WITH_ARGUMENT and argument:
        return _WITH_ARGUMENT[name](argument)
    import difflib  # noqa: PLC0415 - only for error messages

    known = {**_WITHOUT_ARGUMENT, **_WITH_ARGUMENT}
    close = difflib.get_close_matches(name.lower(), known, n=1)
    found = _SUGGESTED_NAMES.get(name.lower()) or "".join(close)
    if found and (found != name or (colon and found not in _WITH_ARGUMENT)):
        meant = found if found in _WITHOUT_ARGUMENT else f"{found}:{argument or 'NAME'}"
        raise ConfigurationError(f"did you mean {meant!r}?")
    raise ConfigurationError(
        "write 'user', 'ip', 'client_ip:HOPS', 'client_ip:PLATFORM' (one of "
        f"{', '.join(PLATFORMS)}), 'header:NAME', 'cookie:NAME', 'query:NAME', 'form:NAME' or "
        "'json:PATH', or give a function"
    )


_WITHOUT_ARGUMENT: dict[str, Callable[[], AnyExtractor]] = {
    "user": lambda: framework_user,
    "ip": client_ip,
    "client_ip": client_ip,
}
_WITH_ARGUMENT: dict[str, Callable[[str], AnyExtractor]] = {
    "client_ip": lambda platform: client_ip(platform=platform),
    "header": header,
    "cookie": cookie,
    "query": query,
    "form": form,
    "post": form,  # Django's name
    "json": json_field,
}
EXTRACTORS = (client_ip, header, cookie, query, form, json_field)
"""The functions that return extractors. Users may forget to call them."""
_SUGGESTED_NAMES = {
    "addr": "ip",
    "address": "ip",
    "body": "json",
    "get": "query",
    "get_remote_address": "ip",
    "ip_address": "ip",
    "param": "query",
    "remote_addr": "ip",
    "user_or_ip": "user",
    "username": "user",
}
"""The names of extractors in other packages, and the corresponding names here."""


# ------------------------------------------------------------------------------------------------
# Lists of the identifiers and networks that a rule allows or denies


class IdentityList(Struct, frozen=True):
    """A set of networks and identifiers."""

    networks: tuple[Network, ...] = ()
    identities: frozenset[tuple[str, str]] = frozenset()
    """Pairs of kind and value."""

    def __bool__(self) -> bool:
        return bool(self.networks or self.identities)

    def __contains__(self, identifier: Identifier) -> bool:
        if self.identities and (identifier.kind, identifier.value) in self.identities:
            return True
        if identifier.kind != "ip" or not self.networks:
            return False
        # An IPv6 client is a network, which must be contained in the listed network.
        client: Any = _parse_network(identifier.value)
        return client is not None and any(
            client.version == network.version and client.subnet_of(network)
            for network in self.networks
        )


def identity_list(entries: Iterable[str]) -> IdentityList:
    """Parse a list of networks and identifiers.

    An entry is an address or network (``203.0.113.0/24``), an identifier as ``KIND=VALUE``
    (``header.x-api-key=abc``), or a value that your own extractor returns (``alice``).
    Raises ConfigurationError.
    """
    given: object = entries
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise ConfigurationError(f"{entries!r} should be a sequence such as ('203.0.113.0/24',)")
    networks, identities = [], set()
    for entry in given:
        if not isinstance(entry, str) or not entry:
            raise ConfigurationError(f"{entry!r} should be a network or an identifier, as text")
        try:
            networks.append(ipaddress.ip_network(entry))
            continue
        except ValueError:
            kind, equals, value = entry.partition("=")
        if equals:
            identities.add((kind, value))
        elif "/" in entry or re.fullmatch(r"[0-9]+(\.[0-9]+)+", entry):
            raise ConfigurationError(f"{entry!r} is not a network; write for instance '10.0.0.0/8'")
        else:
            identities.add(("id", entry))
    return IdentityList(tuple(networks), frozenset(identities))
