"""The command itself: lazy verbs, exit codes, three-line errors, completion."""

import logging
import os
import subprocess
import sys
import types
from collections.abc import Callable

import pytest
import typer

import rsfuse
from rsfuse.cli import main as cli
from rsfuse.cli.main import COMMANDS, load_command, main
from rsfuse.errors import InputError, OutputError

Install = Callable[[Callable[..., None]], None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Make a function the only verb, called `try`."""

    def install(function: Callable[..., None]) -> None:
        module = types.ModuleType("rsfuse_test_verb")
        module.verb = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "rsfuse_test_verb", module)
        monkeypatch.setattr(cli, "COMMANDS", {"try": ("rsfuse_test_verb", "verb", "Try it.")})

    return install


def fails_with(error: BaseException) -> Callable[..., None]:
    def verb() -> None:
        raise error

    return verb


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"rsfuse {rsfuse.__version__}"


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert [name for name in COMMANDS if f" {name} " not in text] == []


def test_no_arguments_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "Usage: rsfuse" in capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_verb_has_help_and_the_common_switches(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = load_command(name)
    verbs = getattr(command, "commands", None) or {name: command}
    for verb in verbs.values():
        switches = {switch for parameter in verb.params for switch in parameter.opts}
        assert {"-q", "-v", "--json"} <= switches
    assert main([name, "-h"]) == 0
    assert f"Usage: rsfuse {name}" in capsys.readouterr().out


def test_mistyped_verb_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulat"]) == 2
    assert "'simulate'" in capsys.readouterr().err


def test_mistyped_option_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--jsn"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert [line.split(":")[0] for line in lines] == ["error", "why", "fix"]
    assert "--json" in lines[0]
    assert lines[2] == "fix: see rsfuse doctor --help"


@pytest.mark.parametrize(
    ("error", "code"),
    [(InputError("found", "needed", "do"), 2), (OutputError("found", "needed", "do"), 1)],
)
def test_own_error_is_three_lines_and_its_exit_code(
    install: Install, error: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    install(fails_with(error))
    assert main(["try"]) == code
    printed = capsys.readouterr()
    assert printed.err == "error: found\nwhy: needed\nfix: do\n"
    assert printed.out == ""


def test_brackets_in_an_error_are_printed_as_they_are(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install(fails_with(InputError("band [red] is missing")))
    main(["try"])
    assert capsys.readouterr().err == "error: band [red] is missing\n"


def test_long_error_stays_on_its_line(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install(fails_with(InputError("word " * 100, "why", "fix")))
    main(["try"])
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_unexpected_error_is_three_lines_without_traceback(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install(fails_with(RuntimeError("boom")))
    assert main(["try"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "error: unexpected error: RuntimeError: boom"
    assert len(lines) == 3
    assert "-vv" in lines[2]


def test_traceback_appears_with_two_v(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install(fails_with(RuntimeError("boom")))
    assert main(["-vv", "try"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_interrupt_is_one_line_and_one(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install(fails_with(KeyboardInterrupt()))
    assert main(["try"]) == 1
    assert capsys.readouterr().err == "error: interrupted\n"


def test_lack_of_memory_proposes_a_smaller_tile(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install(fails_with(MemoryError()))
    assert main(["try"]) == 1
    assert "--tile" in capsys.readouterr().err


def test_exit_code_of_a_weak_result_is_passed_on(install: Install) -> None:
    install(fails_with(typer.Exit(3)))
    assert main(["try"]) == 3


def test_what_a_verb_returns_is_not_an_exit_code(install: Install) -> None:
    def verb() -> int:
        return 7

    install(verb)  # type: ignore[arg-type]
    assert main(["try"]) == 0


@pytest.mark.parametrize(
    ("switches", "level"),
    [([], logging.WARNING), (["-q"], logging.ERROR), (["-v"], logging.INFO)],
)
def test_switches_set_the_log_level(install: Install, switches: list[str], level: int) -> None:
    seen: list[int] = []

    def verb() -> None:
        seen.append(logging.getLogger("rsfuse").getEffectiveLevel())

    install(verb)
    main([*switches, "try"])
    assert seen == [level]


def test_log_goes_to_stderr(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    def verb() -> None:
        logging.getLogger("rsfuse.somewhere").warning("12 of 40 tiles are empty")

    install(verb)
    main(["try"])
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "warning: 12 of 40 tiles are empty\n")


def complete(words: str) -> str:
    """What the shell would be told for these words, as the installed completion asks for it."""
    return subprocess.run(
        [sys.executable, "-m", "rsfuse"],
        env={
            **os.environ,
            "_RSFUSE_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    ).stdout


def test_completion_offers_verbs() -> None:
    assert complete("rsfuse do").split() == ["doctor"]


def test_completion_offers_the_options_of_a_verb() -> None:
    assert "--json" in complete("rsfuse doctor --")
