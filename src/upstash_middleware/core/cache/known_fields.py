"""The request header fields that the cache knows by name: tables, with a reason on each line.

An application sees more of a request than the cache key covers. The settings ``credential_fields``
and ``reflected_fields`` add to two of the tables.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from upstash_middleware.messages import Headers

# --- Fields whose value is a list --------------------------------------------------------------
#
# RFC 9111 §4.1 lets values of a selecting field match as far as the field's definition says that
# they mean the same: in a list, white space around commas and empty members (RFC 9110 §5.6.1). In
# any other field a comma has no meaning: "https://a.example," is not "https://a.example".


class ListField(NamedTuple):
    """Whether case, and the order of its members, make no difference to a list-valued field."""

    case: bool
    order: bool


LIST_FIELDS: Mapping[str, ListField] = {
    # RFC 9110 §12.5.1; the value of a media type's parameter may depend on case.
    "accept": ListField(case=False, order=True),
    "accept-charset": ListField(case=True, order=True),  # RFC 9110 §12.5.2, §8.3.2
    "accept-encoding": ListField(case=True, order=True),  # RFC 9110 §12.5.3, §8.4.1
    "accept-language": ListField(case=True, order=True),  # RFC 9110 §12.5.4, RFC 4647 §2
    "access-control-request-headers": ListField(case=True, order=True),  # names: Fetch §3.3.3
    "cache-control": ListField(case=False, order=True),  # RFC 9111 §5.2
    "prefer": ListField(case=False, order=False),  # RFC 7240 §2: of a repeated one the first counts
    "te": ListField(case=True, order=True),  # RFC 9110 §10.1.4
    "via": ListField(case=False, order=False),  # RFC 9110 §7.6.3: the way that a message took
}

# --- Content codings ---------------------------------------------------------------------------
#
# Clients spell Accept-Encoding in many ways, and a server has few codings: a response is stored for
# all clients that accept its coding. RFC 9110 §8.4.1.

CODINGS = frozenset(
    {
        "br",  # RFC 7932; servers compress text with it
        "deflate",  # zlib; rarely used, but nearly every client names it
        "gzip",  # what each compression middleware can do
        "zstd",  # RFC 8878; newer servers
    }
)

# --- Fields that name a user --------------------------------------------------------------------
#
# In profile "safe" the response to a request with one of them is treated as RFC 9111 §3.5 treats
# Authorization.
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

# --- Fields from which proxies and frameworks read the requested URL or method -------------------
#
# Their values are part of the cache key where they differ from the request itself; these say how
# they are compared.
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

# --- Fields that contain the client's address ---------------------------------------------------
#
# It differs between clients, so it cannot be part of the key: in profile "safe" a response that
# shows such an address is not stored, nor one to a request with anything else in these fields.
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
    """The tables by names in lower case, with the additions of the settings."""

    credentials: Mapping[str, str]
    """The names as they are usually written."""
    reflected: Mapping[str, str]
    """How they are compared with the request."""
    clients: Mapping[str, str]
    """The names as they are usually written."""

    def credential_of(self, headers: Headers, selecting: Iterable[str] = ()) -> str | None:
        """Return the field by which a request names its user, None if it has none.

        An empty field names no user, and one of ``selecting`` is part of the key.
        """
        for name in headers.names():
            known = self.credentials.get(name.replace("_", "-"))
            if known and name not in selecting and any(map(str.strip, headers.lines(name))):
                return known
        return None


def known_fields(
    credential_fields: Iterable[str] = (), reflected_fields: Iterable[str] = ()
) -> KnownFields:
    """Return the tables with the additions of the settings."""
    credentials = {name.lower(): name for name in (*CREDENTIAL_FIELDS, *credential_fields)}
    reflected = {name.lower(): VALUE for name in reflected_fields}
    reflected |= {name.lower(): kind for name, (kind, _) in REFLECTED_FIELDS.items()}
    return KnownFields(credentials, reflected, {name.lower(): name for name in CLIENT_FIELDS})
