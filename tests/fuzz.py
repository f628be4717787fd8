"""Coverage-guided fuzzing of every reader of files from elsewhere, by atheris.

    python tests/fuzz.py coco -max_total_time=60

The first argument names a reader of `untrusted.READERS`; what follows goes to libFuzzer. A content
that breaks a reader is written to crash-* in the working folder. `make fuzz` gives each of them a
minute.
"""

import logging
import random
import re
import sys
import tempfile
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["rsfuse"]):
    from untrusted import READERS, survives

# What takes the place of a word or number, so that the text still parses and means something else.
WORDS = (
    b"null", b"[]", b"{}", b'""', b"0", b"-1", b"nan", b"1e999", b"9" * 30, b"true", b"1.5",
    b'"\\u0000"', b"a" * 300, b"../../a", b"",
)  # fmt: skip
WORD = re.compile(rb'"[^"]*"|[^\s,:"{}\[\]<>=]+')


def mutated(content: bytes, size: int, seed: int) -> bytes:
    """The content with a word replaced or doubled, or mutated by libFuzzer."""
    rng = random.Random(seed)
    words = list(WORD.finditer(content[:size]))
    if not words or rng.random() < 0.4:
        return bytes(atheris.Mutate(content, size))
    chosen = rng.choice(words)
    word = rng.choice((*WORDS, rng.choice(words).group()))
    return (content[: chosen.start()] + word + content[chosen.end() :])[:size]


def main() -> None:
    """Fuzz one reader, starting from its good file."""
    if sys.argv[1:] == ["--list"]:
        print(*READERS)
        return
    if len(sys.argv) < 2 or sys.argv[1] not in READERS:
        sys.exit(f"usage: fuzz.py READER [OPTION OF LIBFUZZER ...]\nreaders: {' '.join(READERS)}")
    logging.disable()
    warnings.simplefilter("ignore")
    reader = READERS[sys.argv[1]]
    with tempfile.TemporaryDirectory() as name:
        folder, corpus = Path(name) / "data", Path(name) / "corpus"
        folder.mkdir()
        corpus.mkdir()
        path = reader.make(folder)
        (corpus / "good").write_bytes(path.read_bytes())
        with atheris.instrument_imports(include=["rsfuse"]):  # what is imported at first use
            survives(lambda: reader.read(folder))

        def once(content: bytes) -> None:
            path.write_bytes(content)
            survives(lambda: reader.read(folder))

        options = [f"-{key}" for key in ("timeout=20", "rss_limit_mb=4096", "max_len=8192")]
        arguments = [sys.argv[0], *options, *sys.argv[2:], str(corpus)]
        atheris.Setup(arguments, once, custom_mutator=mutated)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
