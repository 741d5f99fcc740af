"""What the tests of the Flask extension share."""

from tests.patience import patient_calls  # noqa: F401 - a fixture of every test here
