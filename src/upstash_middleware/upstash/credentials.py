"""The URL and token of a database: finds and checks them, and never shows them. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from msgspec import Struct
from msgspec.structs import force_setattr

from upstash_middleware.errors import ConfigurationError, MissingCredentials
from upstash_middleware.messages import Discreet

if TYPE_CHECKING:
    from collections.abc import Mapping

_VARIABLES: Final = (
    ("UPSTASH_REDIS_REST_URL", "UPSTASH_REDIS_REST_TOKEN"),
    ("KV_REST_API_URL", "KV_REST_API_TOKEN"),
)
"""Pairs of environment variables, of which the first complete pair is used; KV_… is Vercel's."""

_STRAY_CHARACTERS: Final = " \t\r\n\"'"
"""Characters around a value that copying from a .env file or a console may add."""

_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


class Credentials(Discreet, Struct, frozen=True):
    """A database's REST URL and token, as the Upstash console shows them.

    Surrounding whitespace and quotes are removed. Raises ConfigurationError for an invalid REST URL
    or token.
    """

    url: str
    """``https://NAME.upstash.io``, without a slash at the end."""
    token: str
    telemetry: bool = True
    """Whether calls report the package and Python version, as calls of Upstash's SDKs do."""
    transport: Any = None
    """An httpx transport for a database without a socket: a local Upstash in tests."""

    def __post_init__(self) -> None:
        force_setattr(self, "url", _checked_url(self.url.strip(_STRAY_CHARACTERS)))
        force_setattr(self, "token", _checked_token(self.token.strip(_STRAY_CHARACTERS)))

    def __repr__(self) -> str:
        return f"Credentials(url={self.url!r}, telemetry={self.telemetry!r})"

    @classmethod
    def find(
        cls,
        *,
        url: str | None = None,
        token: str | None = None,
        redis: Any = None,
        environ: Mapping[str, str],
    ) -> Credentials:
        """Return the given credentials, or those of the application's client or the environment.

        ``redis`` is a client of upstash-redis or of this package, or a local Upstash. Raises
        MissingCredentials if nothing names both a URL and a token.
        """
        telemetry = "UPSTASH_DISABLE_TELEMETRY" not in environ
        if url or token:
            if not (url and token):
                given, lacking = ("url", "token") if url else ("token", "url")
                raise MissingCredentials(
                    f"{given} is set, but {lacking} is not: give both, or neither to read "
                    f"them from {_VARIABLES[0][0]} and {_VARIABLES[0][1]}"
                )
            return cls(url, token, telemetry)
        if redis is not None:
            return cls.of_redis(redis)
        return cls(*_from_environment(environ), telemetry)

    @classmethod
    def of_redis(cls, redis: Any) -> Credentials:
        """Return the address, token and telemetry choice of a client, the SDK's or this package's.

        A local Upstash has its own transport, so no socket is used.
        Raises ConfigurationError for other objects.
        """
        own = getattr(getattr(redis, "_client", None), "credentials", None)
        if isinstance(own, cls):
            return own
        try:
            if hasattr(redis, "transport"):
                return cls(redis.url, redis.token, telemetry=False, transport=redis.transport)
            authorization = redis._headers["Authorization"]  # noqa: SLF001 - it has no public way
            url, telemetry = redis._url, redis._allow_telemetry  # noqa: SLF001 - likewise
            return cls(url, authorization.removeprefix("Bearer "), bool(telemetry))
        except (AttributeError, KeyError, TypeError):
            kind = f"{type(redis).__module__}.{type(redis).__qualname__}"
            raise ConfigurationError(
                f"redis is an instance of {kind}; give a Redis or AsyncRedis of "
                "upstash_middleware, or an upstash_redis.Redis or upstash_redis.asyncio.Redis"
            ) from None

    @property
    def host(self) -> str:
        """The URL's host name."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """The URL's port, or the default port of its scheme."""
        parts = urlsplit(self.url)
        return parts.port or (443 if parts.scheme == "https" else 80)

    @property
    def local(self) -> bool:
        """Whether the URL's host is this machine, so that no proxy is used."""
        return self.host in _LOOPBACK


def _from_environment(environ: Mapping[str, str]) -> tuple[str, str]:
    for url_name, token_name in _VARIABLES:
        url, token = environ.get(url_name), environ.get(token_name)
        if url and token:
            return url, token
        if url or token:
            given, lacking = (url_name, token_name) if url else (token_name, url_name)
            raise MissingCredentials(
                f"{given} is set in the environment, but {lacking} is not: set both, as the "
                "database's page in the Upstash console shows them"
            )
    (url_name, token_name), (vercel_url, vercel_token) = _VARIABLES
    raise MissingCredentials(
        f"the database's URL and token are missing: set {url_name} and {token_name} (or Vercel's "
        f"{vercel_url} and {vercel_token}) in the environment, or give url= and token=, or redis="
    )


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname, parts.port
    except ValueError:
        raise ConfigurationError(f"url is not a valid URL: {_hide_secrets(url)!r}") from None
    if parts.scheme in {"redis", "rediss"}:
        raise ConfigurationError(
            f"url is {parts.scheme}://…, which is Redis's own protocol; give the REST URL, which "
            "the Upstash console shows as UPSTASH_REDIS_REST_URL and which begins with https://"
        )
    if parts.scheme not in {"http", "https"} or not host:
        raise ConfigurationError(
            f"url is {_hide_secrets(url)!r}; give the REST URL, such as https://NAME.upstash.io"
        )
    if parts.username is not None or parts.query or parts.fragment:
        raise ConfigurationError(
            f"url is {_hide_secrets(url)!r}, which has a user, a query or a fragment; give "
            "the address alone, and the token as token="
        )
    return url.rstrip("/")


def _hide_secrets(url: str) -> str:
    """Return the URL without the parts that may contain a password or a token."""
    address = url.partition("?")[0].partition("#")[0]
    scheme, slashes, rest = address.rpartition("://")
    return f"{scheme}{slashes}{rest.rpartition('@')[2]}"


def _checked_token(token: str) -> str:
    if not token:
        raise MissingCredentials("token is empty: give the database's REST token")
    if not all("!" <= character <= "~" for character in token):
        raise ConfigurationError(
            "token has a space or a character that no token has; copy it again from the Upstash "
            "console (it is not shown here)"
        )
    return token
