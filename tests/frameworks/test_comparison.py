"""What `make test-frameworks` reports: each difference without an explanation, and no other."""

from __future__ import annotations

from typing import Any

from tests.frameworks.comparison import Comparison, Expectations, Results, compare

_ENTRY = {"modes": ["cache"], "tests": ["test_a.py::test_twice[*]"], "because": "it counts calls"}


def _results(outcomes: dict[str, str], *, requests: int = 10, **reports: str) -> Results:
    return Results(outcomes, {"t": "a traceback"}, {"t": requests}, reports)


def _compared(
    before: dict[str, str], after: Results, *entries: dict[str, Any], mode: str = "cache"
) -> Comparison:
    expected = Expectations({"cache": 10}, entries)
    return compare("flask", mode, _results(before), after, expected)


def test_the_same_outcomes_are_no_problem() -> None:
    """Failures that have nothing to do with the middleware included."""
    outcomes = {"t": "passed", "u": "failed", "v": "skipped"}
    assert _compared(outcomes, _results(outcomes)) == Comparison(3, frozenset(), 0, ())


def test_another_outcome_is_reported_with_its_traceback() -> None:
    compared = _compared({"t": "passed"}, _results({"t": "failed"}))
    assert compared.problems == (
        "flask, cache: t: passed without the middleware, failed with it\na traceback",
    )


def test_a_test_that_only_passes_with_the_middleware_is_reported() -> None:
    assert _compared({"t": "failed"}, _results({"t": "passed"})).unexplained


def test_a_test_that_is_not_run_any_more_is_reported() -> None:
    assert _compared({"t": "passed", "u": "passed"}, _results({"t": "passed"})).unexplained


def test_a_test_that_only_the_second_baseline_ran_is_not_missed() -> None:
    baseline, result = _results({"t": "passed"}), _results({"t": "passed"})
    baseline.add(_results({"u": "failed"}))
    expected = Expectations({}, ())
    assert not compare("flask", "cache", baseline, result, expected).problems
    with_it = _results({"t": "passed", "u": "failed"})
    assert not compare("flask", "cache", baseline, with_it, expected).problems


def test_an_entry_that_differs_sometimes_need_not_differ() -> None:
    outcomes = {"test_a.py::test_twice[trio]": "passed"}
    entry = _ENTRY | {"sometimes": True}
    assert not _compared(outcomes, _results(outcomes), entry).problems


def test_an_entry_explains_a_difference_for_every_parameter() -> None:
    before = {"test_a.py::test_twice[asyncio]": "passed", "test_a.py::test_twice[trio]": "passed"}
    compared = _compared(before, _results(dict.fromkeys(before, "failed")), _ENTRY)
    assert compared == Comparison(2, frozenset(), 2, ())


def test_an_entry_explains_nothing_in_another_mode() -> None:
    before = {"test_a.py::test_twice[trio]": "passed"}
    after = _results(dict.fromkeys(before, "failed"))
    assert _compared(before, after, _ENTRY, mode="limits").unexplained


def test_an_entry_whose_tests_do_not_differ_is_reported() -> None:
    outcomes = {"test_a.py::test_twice[trio]": "passed"}
    (problem,) = _compared(outcomes, _results(outcomes), _ENTRY).problems
    assert "which does not differ: remove it" in problem


def test_too_few_requests_are_reported() -> None:
    (problem,) = _compared({"t": "passed"}, _results({"t": "passed"}, requests=9)).problems
    assert problem == "flask, cache: the middleware saw 9 requests of at least 10"


def test_what_the_middleware_reports_of_itself_is_a_problem() -> None:
    """An internal error, for instance, which costs no response and so fails no test."""
    (problem,) = _compared({"t": "passed"}, _results({"t": "passed"}, t="InternalError")).problems
    assert problem.startswith("flask, cache: t: passed without the middleware, InternalError with")


def test_tests_outside_of_the_baseline_have_to_pass() -> None:
    """Where one mode runs the whole of a suite, and the baseline a part of it."""
    after = _results({"t": "passed", "u": "skipped", "v": "failed"})
    assert [p.split(":")[1] for p in _compared({"t": "passed"}, after).problems] == [" v"]


def test_a_test_whose_outcome_changes_without_the_middleware_says_nothing() -> None:
    """Some of the frameworks' tests depend on time."""
    baseline = _results({"t": "failed", "u": "passed"})
    baseline.add(_results({"t": "passed", "u": "passed"}))
    after = _results({"t": "passed", "u": "failed"})
    assert compare("flask", "cache", baseline, after, Expectations({}, ())).unexplained == {"u"}
