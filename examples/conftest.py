"""What holds for the tests of every example: no result depends on the machine's speed."""

from tests.patience import patient_calls, upstash  # noqa: F401 - fixtures of every test here
