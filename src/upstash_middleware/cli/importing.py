"""An application by its import path, ``shop.main:app``; errors say which part of it is wrong."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upstash_middleware.errors import ConfigurationError

if TYPE_CHECKING:
    from types import ModuleType

_USUAL = ("app", "application")


def imported(path: str) -> Any:
    """Return what stands at ``MODULE:ATTRIBUTE``; of ``MODULE`` alone its ``app``.

    ``shop:create_app()`` is called. Modules are looked for in the working directory too, as
    servers do. Raises ConfigurationError.
    """
    name, _, attribute = path.partition(":")
    if not name or name.endswith(".py") or "/" in name:
        raise ConfigurationError(
            f"--app {path!r}: give a module and what it calls the application, such as "
            "'shop.main:app'"
        )
    module = _module(path, name)
    if not attribute:
        attribute = next((usual for usual in _USUAL if hasattr(module, usual)), "")
        if not attribute:
            raise ConfigurationError(
                f"--app {path!r}: {name} has neither 'app' nor 'application'; name what it has, "
                f"as in '{name}:{_candidate(module)}'"
            )
    factory = attribute.endswith("()")
    found = _attribute(path, module, attribute.removesuffix("()"))
    return _called(path, found) if factory else found


def look_here() -> None:
    """Have modules looked for in the working directory first, as servers do."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


def _module(path: str, name: str) -> ModuleType:
    look_here()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name == missing or name.startswith(f"{missing}."):
            raise ConfigurationError(
                f"--app {path!r}: there is no module {missing!r} in {Path.cwd()} or on the "
                "Python path; "
                "run this where you start the server, or set PYTHONPATH"
            ) from None
        raise ConfigurationError(
            f"--app {path!r}: importing {name} failed, for it needs {missing!r}, which is not "
            "installed here"
        ) from error
    except Exception as error:
        raise ConfigurationError(
            f"--app {path!r}: importing {name} raised {type(error).__name__}: {error}"
        ) from error


def _attribute(path: str, module: ModuleType, attribute: str) -> Any:
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ConfigurationError(
                f"--app {path!r}: {module.__name__} has no {attribute!r}; did you mean "
                f"'{module.__name__}:{_candidate(module)}'?"
            )
        found = getattr(found, part)
    return found


def _called(path: str, factory: Any) -> Any:
    try:
        return factory()
    except Exception as error:
        raise ConfigurationError(
            f"--app {path!r}: the factory raised {type(error).__name__}: {error}"
        ) from error


def _candidate(module: ModuleType) -> str:
    """Return a name in a module that looks like an application's."""
    ours = [name for name, value in vars(module).items() if not name.startswith("_")]
    called = [name for name in ours if callable(getattr(module, name))]
    likely = [name for name in called if "app" in name.lower()]
    return next(iter(likely), "app")
