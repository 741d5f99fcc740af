"""The suites: where their sources come from, their environments, and how each one is run."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path

from packaging.markers import Marker

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "frameworks"
REQUIREMENTS = ROOT / "requirements" / "frameworks"
INSIDE = Path(__file__).parent / "inside"

MODES = ("limits", "cache", "conforming", "dead")
"""Every request limited; limited and cached; the same in the profile ``conforming``; the same with
an Upstash that refuses every connection."""
SESSION_MODES = ("sessions",)
"""This package's sessions in place of the framework's own."""
CACHE_MODES = ("signed-pickle", "json")
"""The serializers of the caches that are run in place of the framework's own one in memory."""
BASELINE = "none"

DJANGO_LABELS = (
    *("asgi", "async", "auth_tests", "builtin_server", "cache", "conditional_processing"),
    *("context_processors", "csrf_tests", "decorators", "file_uploads"),
    *("flatpages_tests", "generic_views", "handlers", "httpwrappers", "i18n", "logging_tests"),
    *("messages_tests", "middleware", "middleware_exceptions", "redirects_tests", "requests_tests"),
    *("responses", "servers", "sessions_tests", "signed_cookies_tests", "sitemaps_tests"),
    *("sites_framework", "sites_tests", "staticfiles_tests", "syndication_tests"),
    *("test_client", "test_client_regress", "urlpatterns", "urlpatterns_reverse", "view_tests"),
    *("wsgi", "around_sessions"),
)
"""The parts of Django's suite that send requests; ``full`` below runs all of it. The last is ours:
Django's tests of session backends, on this package's."""


@dataclass(frozen=True)
class Suite:
    """A framework's own tests."""

    name: str
    command: tuple[str, ...]
    """What follows the interpreter, in the folder of the sdist or ``folder`` in it."""
    parts: tuple[str, ...]
    """The tests or labels that follow the command."""
    folder: str = "."
    full: str = ""
    """The mode in which the suite is run without ``parts``."""
    source: str = ""
    """The framework whose sdist and environment it uses, if it is not named as the suite."""
    modes: tuple[str, ...] = MODES

    @property
    def framework(self) -> str:
        return self.source or self.name

    def of(self, *parts: str) -> Suite:
        """Return the same suite with other parts only, for work on a few tests."""
        return replace(self, parts=parts, full="")


_PYTEST = ("-m", "pytest", "-q", "-p", "around_pytest", "-p", "no:cacheprovider", "--timeout=120")
_RUNTESTS = (
    *("runtests.py", "--settings=around_django_settings"),
    *("--parallel=1", "--noinput", "-v0"),
)

SUITES = (
    Suite(
        "fastapi",
        (
            *_PYTEST,
            "--ignore=tests/benchmarks",
            "--ignore=tests/memory_benchmarks",
            # Its tests take a request that waits for Upstash for one that waits in the
            # application. Where that makes one fail, its threads block the process for ever.
            "--ignore=tests/test_dependency_concurrency.py",
        ),
        parts=("tests",),
    ),
    Suite(
        "django",
        _RUNTESTS,
        folder="tests",
        full="limits",
        parts=DJANGO_LABELS,
    ),
    Suite(
        "django-cache",
        _RUNTESTS,
        folder="tests",
        source="django",
        modes=CACHE_MODES,
        parts=(
            "cache",
            "sessions_tests.tests.CacheSessionTests",
            "sessions_tests.tests.CacheSessionWithTimeZoneTests",
            "sessions_tests.tests.CacheDBSessionTests",
            "template_tests.syntax_tests.test_cache",
        ),
    ),
    Suite(
        "flask-caching",
        _PYTEST,
        modes=CACHE_MODES,
        parts=("tests",),
    ),
    Suite("starlette", _PYTEST, parts=("tests",)),
    Suite(
        "starlette-sessions",
        _PYTEST,
        parts=("tests/middleware/test_session.py",),
        source="starlette",
        modes=SESSION_MODES,
    ),
    Suite("werkzeug", (*_PYTEST, "-k", "not reloader"), parts=("tests",)),
    Suite("flask", _PYTEST, parts=("tests",)),
    Suite("flask-sessions", _PYTEST, source="flask", modes=SESSION_MODES, parts=("tests",)),
)
"""The longest first, so that the shorter ones fill up the second processor."""


def version_of(name: str) -> str:
    """Return the version of a framework that requirements/dev.txt pins for this Python."""
    for line in (ROOT / "requirements" / "dev.txt").read_text().splitlines():
        pin, _, marker = line.partition(" ; ")
        if pin.startswith(f"{name}==") and (not marker or Marker(marker).evaluate()):
            return pin.removeprefix(f"{name}==")
    raise LookupError(f"requirements/dev.txt does not pin {name} for this Python")


def call(*command: str | Path, cwd: Path = ROOT) -> str:
    """Run a command and return what it prints; raises RuntimeError with its output if it fails."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def sdist(name: str) -> Path:
    """Return a framework's sdist, downloaded once."""
    folder, version = BUILD / "sdists", version_of(name)
    found = folder / f"{name.replace('-', '_')}-{version}.tar.gz"
    if not found.exists():
        pip = (sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check")
        call(*pip, "--no-deps", "--no-binary=:all:", f"--dest={folder}", f"{name}=={version}")
    return found


def unpack(name: str, folder: Path) -> Path:
    """Unpack a framework's sdist into an empty folder and return the folder of its sources."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tarfile.open(sdist(name)) as archive:
        archive.extractall(folder, filter="data")
    (sources,) = folder.iterdir()
    return sources


def environment(name: str) -> Path:
    """Return the interpreter of a framework's environment, made anew if its pins changed."""
    pins, folder = REQUIREMENTS / f"{name}.txt", BUILD / "environments" / name
    python, ready = folder / "bin" / "python", folder / "ready"
    wanted = hashlib.sha256(pins.read_bytes() + sys.version.encode()).hexdigest()
    if not ready.exists() or ready.read_text() != wanted:
        uv = Path(sys.executable).parent / "uv"
        call(uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder)
        install = (uv, "pip", "install", "--quiet", "--python", python)
        call(*install, "--requirements", pins)
        call(*install, "--no-deps", "--editable", ROOT)
        ready.write_text(wanted)
    return python


def lock() -> None:
    """Pin the environments: the framework as in dev.txt, the rest as its sdist's uv.lock says."""
    uv = Path(sys.executable).parent / "uv"
    for suite in SUITES:
        if suite.source:
            continue
        sources = unpack(suite.name, BUILD / "locking" / suite.name)
        constraints = [
            line
            for line in (ROOT / "requirements" / "dev.txt").read_text().splitlines()
            if line.startswith(f"{suite.name}==")
        ]
        if (sources / "uv.lock").exists():
            exported = call(
                uv, "export", "--quiet", "--frozen", "--no-hashes", "--no-emit-project",
                "--all-groups", "--all-extras", "--no-annotate", "--no-header", cwd=sources,
            )  # fmt: skip
            constraints += filter(_can_be_installed, exported.splitlines())
        file = sources / "constraints.txt"
        file.write_text("\n".join(constraints))
        call(
            uv, "pip", "compile", "--quiet", "--universal", "--python-version=3.11",
            "--upgrade", "--no-header", "--no-annotate", "--no-emit-index-url",
            f"--constraint={file}", f"--output-file={REQUIREMENTS / suite.name}.txt",
            REQUIREMENTS / f"{suite.name}.in", ROOT / "pyproject.toml",
        )  # fmt: skip


def _can_be_installed(pin: str) -> bool:
    """Whether a locked version is of use: certifi's are withdrawn when the next one is there."""
    requirement, _, marker = pin.partition(" ; ")
    if requirement.startswith("certifi=="):
        return False
    versions = [f"3.{minor}" for minor in range(11, 15)]
    return not marker or any(
        Marker(marker).evaluate({"python_version": version, "python_full_version": f"{version}.9"})
        for version in versions
    )


def environ(name: str, run: Path) -> dict[str, str]:
    """Return the environment variables of a run."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("UPSTASH_", "KV_", "PYTEST_", "DJANGO_", "FLASK_", "COVERAGE_"))
    }
    return {
        **kept,
        "FRAMEWORKS_NAME": name,
        "FRAMEWORKS_RUN": str(run),
        "PYTHONPATH": str(INSIDE),
        "PYTHONHASHSEED": "0",
    }
