"""XML labels: safe parsing and the fields that all XML formats share."""

from math import isfinite
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from rsfuse.errors import InputError

# Label files are small; what is larger, or declares entities, is no label file.
MOST_BYTES = 32 << 20


def parse(path: Path) -> Element:
    """The root element of a label file.

    Raises:
        InputError: Not XML, too large, or with entities of its own (they could grow without end).
    """
    try:
        content = path.read_bytes()
        if len(content) > MOST_BYTES or b"<!ENTITY" in content:
            raise InputError(
                f"{path} is too large or declares entities",
                "a label file is a few kilobytes of plain elements",
                "check where it comes from",
            )
        return ElementTree.fromstring(content)
    except (OSError, ElementTree.ParseError) as error:
        raise InputError(
            f"{path} cannot be read: {error}", "an XML file is needed", "check the file"
        ) from error


def number(element: Element, name: str, path: Path) -> float:
    """A finite number of a child element.

    Raises:
        InputError: It is missing or no number.
    """
    text = (element.findtext(name) or "").strip()
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not isfinite(value):
        raise InputError(
            f"{path}: <{name}> of <{element.tag}> is {text!r}",
            "a finite number is needed",
            "correct or remove the object",
        )
    return value


def numbers(element: Element, names: tuple[str, ...], path: Path) -> tuple[float, ...]:
    """Several of them."""
    return tuple(number(element, name, path) for name in names)


def flag(element: Element, name: str = "difficult") -> int:
    """0 or 1; 0 where it is missing."""
    return int((element.findtext(name) or "0").strip() not in ("", "0"))
