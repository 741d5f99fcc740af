"""The shop's settings; UPSTASH_MIDDLEWARE says what is limited and what is cached."""

from __future__ import annotations

import os
from pathlib import Path

HERE = Path(__file__).parent.parent

SECRET_KEY = os.environ.get("SECRET_KEY", "not secret: this is an example")
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
ROOT_URLCONF = "shop.urls"
WSGI_APPLICATION = "shop.wsgi.application"
TIME_ZONE = "UTC"
USE_TZ = True

INSTALLED_APPS = [
    "upstash_middleware.django",  # for `manage.py check`
    "catalogue",
]

MIDDLEWARE = [
    # Above middleware that makes pages personal, such as sessions; `manage.py check` verifies it.
    "upstash_middleware.django.UpstashMiddleware",
    "upstash_middleware.django.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.http.ConditionalGetMiddleware",  # gives pages an ETag
]

UPSTASH_MIDDLEWARE = {
    # By default, clients are identified by the address of the connection. Behind a proxy, this is
    # the proxy's address for all clients: set "client_ip": 1 for one proxy.
    "default_limit": "100/minute",
    "rate_limits": [
        {"path": "/api/generate", "methods": ["POST"], "limits": "10/10s"},
        {"path": "/", "limits": "1000/minute lease 10s"},
    ],
    "cache": [{"path": "/catalogue/{slug}", "ttl": 60, "tags": ["product:{slug}"]}],
}

SESSION_ENGINE = "upstash_middleware.django.sessions"

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": Path(os.environ.get("EXAMPLE_DATA", HERE)) / "shop.sqlite3",
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]
