"""The public API as type checkers see it: ``assert_type`` and calls that they shall refuse.

Nothing here runs. mypy checks it in `make lint`, pyright in `make test-all`; what is to be refused
is marked for both, and a mark that refuses nothing is an error to both.
"""
