"""One root error and the few kinds a caller may want to handle.

Every error has three beats: what was found, why that is a problem, what to do next. The command
line prints them as three lines and exits with `exit_code`; a traceback appears only with `-vv`.
"""


class RsfuseError(Exception):
    """The root of all errors that rsfuse raises on purpose.

    Args:
        what: What was found, with the value.
        why: Why this cannot work, or what is needed instead.
        fix: What to do next; a command or an argument where there is one.
    """

    exit_code = 1

    def __init__(self, what: str, why: str = "", fix: str = "") -> None:
        super().__init__(what, why, fix)
        self.what = what
        self.why = why
        self.fix = fix

    def __reduce__(self) -> tuple[type["RsfuseError"], tuple[str, str, str]]:
        """Made again from its three texts, also where a library pickles exceptions its own way."""
        return type(self), (self.what, self.why, self.fix)

    def __str__(self) -> str:
        return "\n".join(line for line in (self.what, self.why, self.fix) if line)


class InputError(RsfuseError, ValueError):
    """What the user gave cannot be used as it is."""

    exit_code = 2


class RasterError(InputError, OSError):
    """A raster is missing, damaged, or not a raster."""


class GridError(InputError):
    """Two grids do not fit together, or a grid is unusable."""


class MissingCrsError(GridError):
    """An operation in map units needs a CRS and the raster has none."""


class NoOverlapError(GridError):
    """Two rasters share no ground."""


class BandError(InputError):
    """A band that was asked for does not exist, or their number does not fit."""


class ConfigError(InputError):
    """A configuration holds an unknown key or an impossible value."""


class OutputError(RsfuseError, OSError):
    """A result could not be written."""
