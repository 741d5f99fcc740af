"""The transcript: what the demo prints, and whether every step was as it should be."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from examples.demo.play import Cost

_BOLD, _DIM, _GREEN, _RED, _PLAIN = "\033[1m", "\033[2m", "\033[32m", "\033[31m", "\033[0m"


class Transcript:
    """Prints steps as they happen; colours only where a terminal shows them."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._steps = 0
        self._wrong = 0

    def title(self, name: str, address: str) -> None:
        """Begin a new part of the demo."""
        self._line(f"\n{self._in(_BOLD, name)}  {self._in(_DIM, address)}")

    def act(self, sentence: str) -> None:
        """Say what the following steps are about."""
        self._line(f"\n  {sentence}")

    def step(self, name: str, answer: str, cost: Cost | None, *, right: bool, should: str) -> None:
        """Tell one step: what came, what it cost, and, if it was wrong, what should have come."""
        self._steps += 1
        mark = self._in(_GREEN, "✓") if right else self._in(_RED, "✗")
        price = self._in(_DIM, str(cost)) if cost else ""
        self._line(f"    {mark} {name:<15} {answer:<58} {price}".rstrip())
        if not right:
            self._wrong += 1
            self._line(f"      it should be {should}")

    def wait(self, seconds: int) -> None:
        """Let so many seconds pass, in the reader's sight."""
        if not self._out.isatty():
            self._line(f"      … {seconds} s pass")
            time.sleep(seconds)
            return
        for left in range(seconds, 0, -1):
            self._out.write(f"\r      … {left} s ")
            self._out.flush()
            time.sleep(1)
        self._out.write("\r" + " " * 20 + "\r")

    def close(self) -> int:
        """Say how it went and return the exit status."""
        if not self._wrong:
            self._line(f"\n{self._in(_GREEN, f'All {self._steps} steps were as they should be.')}")
            return 0
        wrong = f"{self._wrong} of {self._steps} steps were not as they should be, marked ✗ above."
        self._line(f"\n{self._in(_RED, wrong)}")
        return 1

    def _line(self, text: str) -> None:
        self._out.write(text + "\n")
        self._out.flush()

    def _in(self, style: str, text: str) -> str:
        return f"{style}{text}{_PLAIN}" if self._out.isatty() else text
