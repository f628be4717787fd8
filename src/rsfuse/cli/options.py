"""Options that several commands share: one spelling, one meaning, one help text.

Use them as annotations: `def apply(transform: Path, output: Output, memory: Memory = None)`.
`--memory` arrives as bytes; `--shard` arrives as text and goes through `parse_shard`; `-q` and `-v`
set the log level themselves. Nothing heavy is imported here.
"""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from rsfuse.cli.output import set_up_logging
from rsfuse.errors import InputError

# What a detector may run by.
RUNTIMES = ("auto", "torch", "onnx")


def parse_shard(text: str) -> tuple[int, int]:
    """(i, n) of a shard such as 2/8, counted from 1; returned counted from 0.

    Raises:
        InputError: Not i/n with 1 <= i <= n.
    """
    found = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
    index, count = (int(found.group(1)), int(found.group(2))) if found else (0, 0)
    if not 1 <= index <= count:
        raise InputError(
            f"{text!r} is not a shard",
            "i/n with 1 <= i <= n is needed",
            "for example --shard 2/8 for the second of eight parts",
        )
    return index - 1, count


def parse_distance(text: str, gsd_m: float | None) -> float:
    """Pixels of a distance such as 500m, 1.2km or 40px (the unit may be left out for pixels).

    Args:
        text: The distance as typed.
        gsd_m: Metres per pixel of the reference; None where the image has no CRS.

    Raises:
        InputError: Not a distance, or metres without a CRS to convert them.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(px|m|km)?\s*", text)
    if not found:
        raise InputError(
            f"{text!r} is not a distance",
            "a number in pixels or metres is needed",
            "for example --max-shift 40px or --max-shift 500m",
        )
    value, unit = float(found.group(1)), found.group(2) or "px"
    if unit == "px":
        return value
    if gsd_m is None:
        raise InputError(
            f"{text!r} is in metres and the reference has no CRS",
            "without a CRS the size of a pixel on the ground is unknown",
            "give the distance in pixels, for example --max-shift 40px",
        )
    return value * (1000.0 if unit == "km" else 1.0) / gsd_m


def names_of(text: str | None) -> tuple[str, ...]:
    """Names of a list such as ship,plane; none of None."""
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def band_list(text: str | None) -> tuple[str | int, ...] | None:
    """Band names or numbers of a list such as red,nir or 1,2; None of None."""
    if text is None:
        return None
    return tuple(int(part) if part.isdigit() else part for part in names_of(text))


def choice(value: str, allowed: Sequence[str], option: str) -> str:
    """The value, checked against what an option allows; the error names the nearest choice."""
    if value in allowed:
        return value
    near = difflib.get_close_matches(value, allowed, n=1)
    raise InputError(
        f"{option} {value} is unknown",
        f"it takes one of {', '.join(allowed)}",
        f"did you mean {option} {near[0]}?" if near else f"for example {option} {allowed[0]}",
    )


def _bytes(text: str) -> int:
    from rsfuse.geo.grid import parse_memory

    return parse_memory(text)


def _set_quiet(value: bool) -> bool:
    if value:
        set_up_logging(quiet=True)
    return value


def _set_verbose(value: int) -> int:
    if value:
        set_up_logging(verbose=value)
    return value


Output = Annotated[
    Path, typer.Option("-o", "--output", help="Where results are written.", show_default=False)
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Memory = Annotated[
    int | None,
    typer.Option(
        parser=_bytes,
        metavar="SIZE",
        help="Most memory to use, for example 2GB. Tiles are sized to stay below.",
    ),
]
Tile = Annotated[int | None, typer.Option("--tile", min=64, help="Tile side in pixels.")]
Overlap = Annotated[
    int | None, typer.Option(min=0, help="Overlap of neighbouring tiles in pixels.")
]
Workers = Annotated[int, typer.Option(min=1, help="Parallel workers.")]
Shard = Annotated[
    str | None, typer.Option(help="Do part i of n of the work, for example 2/8.", metavar="I/N")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run stopped.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be done: tiles, memory, outputs.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Quiet = Annotated[
    bool, typer.Option("-q", "--quiet", callback=_set_quiet, help="Errors only, no progress.")
]
Verbose = Annotated[
    int,
    typer.Option(
        "-v",
        "--verbose",
        count=True,
        callback=_set_verbose,
        metavar="",
        show_default=False,
        help="Log more; -vv also adds tracebacks to errors.",
    ),
]
Progress = Annotated[str, typer.Option(help="bar (on a terminal), json (lines on stderr) or none.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the random generator.")]
