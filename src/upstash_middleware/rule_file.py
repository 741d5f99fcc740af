"""The rule file: the settings as TOML, the same for every framework and for the command line.

Reading only; what the settings mean is said in ``upstash_middleware.settings``.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upstash_middleware.errors import ConfigurationError

if TYPE_CHECKING:
    from os import PathLike


def read_rule_file(path: str | PathLike[str]) -> dict[str, Any]:
    """Return the settings that a file holds, by their names, as a mapping would.

    Raises ConfigurationError for a file that cannot be read, or is no TOML.
    """
    try:
        with Path(path).open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigurationError(f"the rule file {str(path)!r} cannot be read: {reason}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the rule file {str(path)!r} is no TOML: {error}") from None
