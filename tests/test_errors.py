"""Errors: three beats, an exit code, and safe passage between processes."""

import pickle

import pytest

import rsfuse.errors
from rsfuse.errors import InputError, OutputError, RasterError, RsfuseError

EVERY_ERROR = [
    kind
    for kind in vars(rsfuse.errors).values()
    if isinstance(kind, type) and issubclass(kind, RsfuseError)
]


@pytest.mark.parametrize("kind", EVERY_ERROR)
def test_error_prints_three_lines(kind: type[RsfuseError]) -> None:
    assert str(kind("found", "needed", "do this")) == "found\nneeded\ndo this"


@pytest.mark.parametrize("kind", EVERY_ERROR)
def test_error_survives_the_way_back_from_a_worker(kind: type[RsfuseError]) -> None:
    """Also after Dask was imported, which pickles all exceptions in a way of its own."""
    error = pickle.loads(pickle.dumps(kind("found", "needed", "do this")))
    assert type(error) is kind
    assert (error.what, error.why, error.fix) == ("found", "needed", "do this")


@pytest.mark.parametrize("kind", EVERY_ERROR)
def test_bad_input_is_two_and_failure_is_one(kind: type[RsfuseError]) -> None:
    assert kind.exit_code == (2 if issubclass(kind, InputError) else 1)


def test_callers_can_catch_built_in_kinds() -> None:
    assert issubclass(InputError, ValueError)
    assert issubclass(RasterError, OSError)
    assert issubclass(OutputError, OSError)
