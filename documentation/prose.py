"""Check that the documentation is easy to read: ``make prose``.

It reads the pages' text without code, and reports

- words to avoid, from ``words.toml``, with what to write in their place;
- sentences of more than 30 words;
- what proselint finds: repeated words, clichés, redundancy, misused words.

``prose.toml`` has the findings that are accepted: each exception with its reason, and for pages
that were written before this check the number of findings that they may have. That number can only
become smaller, and an exception without a finding is an error. ``python -m documentation.prose
[--all] [PAGE…]`` checks some pages, and with ``--all`` also prints findings within that number;
``--record`` writes the smaller numbers.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections import Counter
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROOT: Final = Path(__file__).parents[1]
ACCEPTED: Final = Path(__file__).parent / "prose.toml"
WORDS: Final = Path(__file__).parent / "words.toml"
LONGEST: Final = 30
"""Words in a sentence; a span of code counts as one."""

_NOT_PROSE = re.compile(
    r"^( *)(?P<fence>`{3,}|~{3,}).*?\n.*?^\1(?P=fence)[ \t]*$"  # fenced code
    r"|<!--.*?-->|<[a-z/][^>]*>|!\[[^\]]*\]\([^)]*\)|^\[[^\]]+\]: .*$",
    re.DOTALL | re.MULTILINE,
)
_CODE = re.compile(r"(?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`)", re.DOTALL)
_LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\](?:\([^)\s]*\)|\[[^\]]*\])")
_BEGINS = re.compile(r"^\s*(#+ |[-*] |\d+\. |\||>|$)")
_END = re.compile(r"(?<=[.!?:])[\"')*]*\s+(?=[\"'(*A-Z])|\s\|\s|;\s")
_WORD = re.compile(r"[\w'.-]*\w")


@dataclass(frozen=True, slots=True)
class Finding:
    """A place that is hard to read."""

    page: str
    line: int
    rule: str
    text: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: [{self.rule}] {self.text!r}: {self.remedy}"


@dataclass(frozen=True, slots=True)
class Block:
    """A heading, paragraph, item or row of a table, without code."""

    line: int
    text: str


def prose_blocks(text: str) -> list[Block]:
    """Return what a page says in sentences. Lines keep their numbers."""
    numbers = iter(range(1, 10**6))

    def lines_of(match: re.Match[str]) -> str:
        return "\n" * match[0].count("\n")

    def name_of(match: re.Match[str]) -> str:
        return f"Code{next(numbers)}{lines_of(match)}"

    text = _CODE.sub(name_of, _NOT_PROSE.sub(lines_of, text))
    text = _LINK.sub(lambda match: match[1], text)
    blocks: list[Block] = []
    within = False
    for number, line in enumerate(text.splitlines(), 1):
        begins = _BEGINS.match(line)
        if within and not begins:
            last = blocks.pop()
            blocks.append(Block(last.line, f"{last.text}\n{line}"))
        elif line.strip():
            blocks.append(Block(number, line))
        within = bool(line.strip()) and not line.startswith("#")
    return blocks


def findings(page: str, text: str) -> Iterator[Finding]:
    """Yield the words to avoid and the long sentences of a page."""
    for block in prose_blocks(text):
        for rule, pattern, remedy in _words():
            for match in pattern.finditer(block.text):
                line = block.line + block.text.count("\n", 0, match.start())
                yield Finding(page, line, rule, " ".join(match[0].split()), f"write {remedy}")
        for sentence in _END.split(block.text):
            words = _WORD.findall(sentence)
            if len(words) > LONGEST:
                line = block.line + block.text.count("\n", 0, block.text.index(sentence))
                remedy = f"has {len(words)} words; write two sentences, or a list"
                yield Finding(page, line, "long", f"{' '.join(words[:6])} …", remedy)


def proselint_findings(page: str, text: str) -> Iterator[Finding]:
    """Yield what proselint finds on a page."""
    # It is in the environment that builds the site, and not in that of the tests.
    from proselint.checks import __register__  # noqa: PLC0415
    from proselint.config import DEFAULT  # noqa: PLC0415
    from proselint.registry import CheckRegistry  # noqa: PLC0415
    from proselint.tools import LintFile  # noqa: PLC0415

    registry = CheckRegistry()
    if not registry.checks:
        registry.register_many(__register__)
    # Quotes are straight and three dots are dots, as in code.
    checks = DEFAULT["checks"] | {"typography": False, "annotations": False}
    # A sign between blocks, so that a heading and the text below it are not one sentence.
    lines: list[tuple[int, str]] = []
    for block in prose_blocks(text):
        lines += [(block.line + at, line) for at, line in enumerate(block.text.splitlines())]
        lines.append((block.line, "¶"))
    content = "\n".join(line for _, line in lines)
    for result in LintFile(page, content).lint({"max_errors": 1000, "checks": checks}):
        start, end = result.check_result.span
        text = " ".join(f"\n{content}\n"[start:end].split()).strip("¶ ")
        message = result.check_result.message
        rule = f"proselint.{result.check_result.check_path}"
        yield Finding(page, lines[max(result.pos[0] - 2, 0)][0], rule, text, message)


def _words() -> list[tuple[str, re.Pattern[str], str]]:
    if not _WORDS:
        for rule, words in tomllib.loads(WORDS.read_text()).items():
            for words_, remedy in words.items():
                spaced = words_.replace(" ", r"\s+")
                pattern = re.compile(rf"(?<![\w-])(?:{spaced})(?![\w-])", re.IGNORECASE)
                _WORDS.append((rule, pattern, remedy))
    return _WORDS


_WORDS: Final[list[tuple[str, re.Pattern[str], str]]] = []


def pages() -> list[Path]:
    """Return the pages that are checked."""
    return sorted([*ROOT.glob("docs/**/*.md"), ROOT / "README.md"])


def is_accepted(finding: Finding, exceptions: Iterable[dict[str, str]]) -> bool:
    """Return whether an entry of ``prose.toml`` has the finding's page, rule and text."""
    return any(_is_about(each, finding) for each in exceptions)


def _is_about(exception: dict[str, str], finding: Finding) -> bool:
    return (
        fnmatch(finding.page, exception["page"])
        and fnmatch(finding.rule, exception.get("rule", "*"))
        and fnmatch(finding.text.lower(), exception.get("text", "*").lower())
    )


def unused(found: Iterable[Finding], exceptions: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    """Return the entries of ``prose.toml`` that no finding needs any more."""
    found = list(found)
    return [each for each in exceptions if not any(_is_about(each, one) for one in found)]


def main(arguments: list[str]) -> int:
    """Print the findings that are not accepted, and return 1 if there are any."""
    named = [Path(each).resolve() for each in arguments if not each.startswith("-")]
    settings = tomllib.loads(ACCEPTED.read_text())
    exceptions, recorded = settings["accepted"], settings.get("recorded", {})
    now: Counter[str] = Counter()
    all_found: list[Finding] = []
    failed = False
    for path in named or pages():
        page = path.relative_to(ROOT).as_posix()
        text = path.read_text()
        everything = [*findings(page, text), *proselint_findings(page, text)]
        all_found += everything
        found = [each for each in everything if not is_accepted(each, exceptions)]
        now[page] = len(found)
        too_many = len(found) > recorded.get(page, 0)
        failed |= too_many
        if too_many or "--all" in arguments:
            print(*found, sep="\n", end="\n" * bool(found))  # noqa: T201 - it is a command
        if too_many and page in recorded:
            print(f"{page}: {len(found)} findings, {recorded[page]} before")  # noqa: T201
    for each in [] if named else unused(all_found, exceptions):
        print(f"{ACCEPTED.name}: no finding is accepted by {each}; remove it")  # noqa: T201
        failed = True
    if "--record" in arguments:
        left = {page: min(n, now.get(page, n)) for page, n in recorded.items()}
        _record({page: n for page, n in left.items() if n})
    return int(failed)


def _record(numbers: dict[str, int]) -> None:
    kept = ACCEPTED.read_text().partition("\n[recorded]\n")[0]
    lines = [f'"{page}" = {number}\n' for page, number in sorted(numbers.items())]
    ACCEPTED.write_text(kept + "\n[recorded]\n" + "".join(lines))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
