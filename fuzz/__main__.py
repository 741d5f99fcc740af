"""Fuzz one target for some seconds: ``python -m fuzz wire 60``. Needs atheris."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

from fuzz.targets import TARGETS, seeds

CASES = Path(__file__).parent / "cases"


def main(name: str, seconds: str) -> None:
    """Fuzz a target; what breaks it is written to its cases, and ends this with a traceback."""
    atheris.instrument_all()
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds(name)):
            (Path(corpus) / f"seed{number}").write_bytes(seed)
        kept = CASES / name
        atheris.Setup(
            [
                f"fuzz {name}",
                f"-max_total_time={seconds}",
                "-max_len=4096",
                "-print_final_stats=1",
                f"-artifact_prefix={kept}/",
                corpus,
                str(kept),
            ],
            TARGETS[name],
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
