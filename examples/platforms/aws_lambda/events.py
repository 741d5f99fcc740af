"""Events as AWS documents them, for a GET from ``SOURCE`` through each of its fronts.

``spoofed`` is what the client itself has put into X-Forwarded-For. What becomes of it differs:
API Gateway and load balancers append the address that they have seen; the edge-optimised endpoint
of a REST API appends CloudFront's too; a function URL leaves the first entry alone.
"""

from __future__ import annotations

from typing import Any

SOURCE = "203.0.113.7"
CLOUDFRONT = "130.176.20.90"

Event = dict[str, Any]


def rest_api(path: str, spoofed: str = "", method: str = "GET", *, edge: bool = False) -> Event:
    """Return a proxy event of a REST API: payload format 1.0."""
    forwarded = _appended(spoofed, f"{SOURCE}, {CLOUDFRONT}" if edge else SOURCE)
    return {
        "resource": "/{proxy+}",
        "path": path,
        "httpMethod": method,
        "headers": {
            "Accept": "*/*",
            "Host": "id.execute-api.eu-central-1.amazonaws.com",
            "X-Forwarded-For": forwarded,
            "X-Forwarded-Port": "443",
            "X-Forwarded-Proto": "https",
        },
        "multiValueHeaders": {
            "Accept": ["*/*"],
            "Host": ["id.execute-api.eu-central-1.amazonaws.com"],
            "X-Forwarded-For": [forwarded],
            "X-Forwarded-Port": ["443"],
            "X-Forwarded-Proto": ["https"],
        },
        "queryStringParameters": None,
        "multiValueQueryStringParameters": None,
        "pathParameters": {"proxy": path.lstrip("/")},
        "stageVariables": None,
        "requestContext": {
            "resourcePath": "/{proxy+}",
            "httpMethod": method,
            "path": f"/prod{path}",
            "protocol": "HTTP/1.1",
            "stage": "prod",
            "accountId": "123456789012",
            "apiId": "id",
            "requestId": "c6af9ac6-7b61-11e6-9a41-93e8deadbeef",
            "identity": {"sourceIp": SOURCE, "userAgent": "curl/8.5.0"},
        },
        "body": None,
        "isBase64Encoded": False,
    }


def edge_rest_api(path: str, spoofed: str = "", method: str = "GET") -> Event:
    """Return the event of a REST API with an edge-optimised endpoint."""
    return rest_api(path, spoofed, method, edge=True)


def http_api(path: str, spoofed: str = "", method: str = "GET") -> Event:
    """Return an event of an HTTP API: payload format 2.0."""
    return {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": "",
        "headers": {
            "accept": "*/*",
            "host": "id.execute-api.eu-central-1.amazonaws.com",
            "x-forwarded-for": _appended(spoofed, SOURCE),
            "x-forwarded-port": "443",
            "x-forwarded-proto": "https",
        },
        "requestContext": {
            "accountId": "123456789012",
            "apiId": "id",
            "domainName": "id.execute-api.eu-central-1.amazonaws.com",
            "domainPrefix": "id",
            "http": {
                "method": method,
                "path": path,
                "protocol": "HTTP/1.1",
                "sourceIp": SOURCE,
                "userAgent": "curl/8.5.0",
            },
            "requestId": "JKJaXmPLvHcESHA=",
            "routeKey": "$default",
            "stage": "$default",
            "time": "12/Mar/2026:19:03:58 +0000",
            "timeEpoch": 1773342238000,
        },
        "isBase64Encoded": False,
    }


def function_url(path: str, spoofed: str = "", method: str = "GET") -> Event:
    """Return the event of a function URL: format 2.0, with what came first in X-Forwarded-For."""
    event = http_api(path, method=method)
    host = "id.lambda-url.eu-central-1.on.aws"
    event["headers"] |= {"host": host, "x-forwarded-for": spoofed.partition(",")[0] or SOURCE}
    event["requestContext"] |= {"accountId": "anonymous", "domainName": host}
    return event


def load_balancer(path: str, spoofed: str = "", method: str = "GET") -> Event:
    """Return the event of an Application Load Balancer, which names no source of its own."""
    group = "arn:aws:elasticloadbalancing:eu-central-1:123456789012:targetgroup/shop/d0e4ad"
    return {
        "requestContext": {"elb": {"targetGroupArn": group}},
        "httpMethod": method,
        "path": path,
        "queryStringParameters": {},
        "headers": {
            "accept": "*/*",
            "host": "shop-846800462.eu-central-1.elb.amazonaws.com",
            "x-amzn-trace-id": "Root=1-5bdb40ca-556d8b0c50dc66f0511bf520",
            "x-forwarded-for": _appended(spoofed, SOURCE),
            "x-forwarded-port": "443",
            "x-forwarded-proto": "https",
        },
        "body": "",
        "isBase64Encoded": False,
    }


def _appended(spoofed: str, seen: str) -> str:
    return f"{spoofed}, {seen}" if spoofed else seen
