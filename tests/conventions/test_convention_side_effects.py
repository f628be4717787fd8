"""Randomness, printing, OpenCV's angles: docs/conventions.md, "Randomness and side effects"."""

import ast
from collections.abc import Iterator
from pathlib import Path

LEGACY_NUMPY = {
    "seed",
    "rand",
    "randn",
    "randint",
    "random",
    "normal",
    "uniform",
    "choice",
    "shuffle",
    "permutation",
    "RandomState",
}
ANGLE_FUNCTIONS = {"minAreaRect", "fitEllipse", "fitEllipseAMS", "fitEllipseDirect", "boxPoints"}


def modules(repository: Path) -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted((repository / "src").rglob("*.py")):
        yield path, ast.parse(path.read_text("utf-8"))


def dotted(node: ast.expr) -> str:
    """`a.b.c` of an expression, empty where it is something else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (base := dotted(node.value)):
        return f"{base}.{node.attr}"
    return ""


def calls(repository: Path) -> Iterator[tuple[str, str]]:
    """Place and dotted name of every call in the package."""
    for path, tree in modules(repository):
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                yield f"{path.relative_to(repository)}:{node.lineno}", dotted(node.func)


def test_convention_no_global_randomness(repository: Path) -> None:
    wrong = [
        f"{place}: {name}"
        for place, name in calls(repository)
        if name in {"torch.manual_seed", "cv2.setRNGSeed"}
        or name.startswith("random.")
        or (
            name.startswith(("np.random.", "numpy.random."))
            and name.rsplit(".", 1)[1] in LEGACY_NUMPY
        )
    ]
    assert wrong == []


def test_convention_library_does_not_print(repository: Path) -> None:
    wrong = [
        f"{place}: {name}"
        for place, name in calls(repository)
        if name in {"print", "sys.stdout.write"} and "/cli/" not in place
    ]
    assert wrong == []


def test_convention_no_angle_from_opencv(repository: Path) -> None:
    wrong = [
        f"{place}: {name}"
        for place, name in calls(repository)
        if name.startswith("cv2.") and name.rsplit(".", 1)[1] in ANGLE_FUNCTIONS
    ]
    assert wrong == []
