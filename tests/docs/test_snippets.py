"""Documentation runs: code blocks are executed, links lead somewhere, targets exist."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")], key=lambda p: str(p)
)
EXECUTED = ("sh", "python")
SHOWN = ("", "text", "json", "toml", "yaml")


class Snippet(NamedTuple):
    line: int
    language: str
    code: str


def snippets(page: Path) -> list[Snippet]:
    """The fenced code blocks of a page."""
    text = page.read_text(encoding="utf-8")
    return [
        Snippet(text.count("\n", 0, found.start()) + 1, found.group(1), found.group(2))
        for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)
    ]


def name_of(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


RUNNABLE = [page for page in PAGES if any(s.language in EXECUTED for s in snippets(page))]


@pytest.mark.parametrize("page", RUNNABLE, ids=name_of)
def test_snippets_run_in_order(page: Path, tmp_path: Path) -> None:
    """All blocks of a page, one after the other, in one empty folder, with this environment."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "Agg",
    }
    for line, language, code in snippets(page):
        if language not in EXECUTED:
            continue
        command = (
            ["bash", "-euo", "pipefail", "-c", code]
            if language == "sh"
            else [sys.executable, "-W", "error", "-c", code]
        )
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, f"{name_of(page)}:{line}\n{done.stdout}\n{done.stderr}"


def test_readme_has_three_runnable_examples() -> None:
    runnable = [s for s in snippets(REPOSITORY / "README.md") if s.language in EXECUTED]
    assert len(runnable) >= 3


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_code_blocks_say_whether_they_run(page: Path) -> None:
    languages = {snippet.language for snippet in snippets(page)}
    assert languages <= {*EXECUTED, *SHOWN}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_pictures_of_a_page_exist(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    broken = [
        target
        for target in targets
        if target
        and not target.startswith(("http://", "https://", "mailto:"))
        and not (page.parent / target).exists()
    ]
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_make_targets_named_on_a_page_exist(page: Path) -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.M))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(encoding="utf-8"), re.M))
    assert named <= targets


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_verbs_named_on_a_page_exist(page: Path) -> None:
    from rsfuse.cli.main import COMMANDS

    named = set(re.findall(r"`rsfuse ([a-z]+)", page.read_text(encoding="utf-8")))
    assert named <= set(COMMANDS)


def test_every_decision_is_listed() -> None:
    folder = REPOSITORY / "docs" / "decisions"
    index = (folder / "README.md").read_text(encoding="utf-8")
    missing = [p.name for p in folder.glob("0*.md") if f"({p.name})" not in index]
    assert missing == []


def test_stated_version_is_one() -> None:
    import rsfuse

    citation = (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")
    changelog = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\nversion: {rsfuse.__version__}\n" in citation
    assert f"\n## {rsfuse.__version__} " in changelog
