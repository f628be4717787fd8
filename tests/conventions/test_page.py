"""The page of conventions and the tests that pin it name each other."""

import re
from pathlib import Path


def test_every_line_has_its_test_and_every_test_its_line(repository: Path) -> None:
    page = (repository / "docs" / "conventions.md").read_text(encoding="utf-8")
    named = re.findall(r"`(test_convention_\w+)`", page)
    defined = [
        name
        for path in sorted(Path(__file__).parent.glob("test_convention_*.py"))
        for name in re.findall(r"^def (test_convention_\w+)", path.read_text("utf-8"), re.M)
    ]
    assert sorted(named) == sorted(defined)
