"""What the tests of the application's own Redis client share."""

from tests.patience import patient_calls  # noqa: F401 - a fixture of every test here
