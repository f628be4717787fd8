"""The run folder: atomic files, strict JSON, a record that survives a round trip."""

import errno
import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from rsfuse.errors import InputError, OutputError, RasterError
from rsfuse.runs import (
    RunRecord,
    atomic_path,
    distinct_outputs,
    is_run_folder,
    prepare_output,
    read_json,
    staged,
    utc_now,
    write_json,
)


def record(**changes: object) -> RunRecord:
    values: dict[str, object] = {
        "task": "match",
        "command": "rsfuse match a.tif b.tif -o out",
        "started": "2026-11-25T02:00:00Z",
        "seconds": 1.9,
        "inputs": ({"role": "reference", "path": "a.tif", "shape": [8, 9]},),
        "parameters": {"model": "auto"},
        "status": "weak",
        "confidence": 0.4,
        "reasons": ({"code": "few_tie_points", "message": "7 of 12", "numbers": {"found": 7}},),
        "result": {"model": "affine"},
        "outputs": {"transform": "transform.json", "tie_points": ["a.csv", "a.gpkg"]},
    }
    return RunRecord(**{**values, **changes})


def test_record_survives_a_round_trip(tmp_path: Path) -> None:
    written = record(rsfuse_version="0.1.0")
    written.save(tmp_path)
    assert RunRecord.load(tmp_path) == written
    assert is_run_folder(tmp_path)


def test_record_file_names_format_version_and_writer(tmp_path: Path) -> None:
    content = json.loads(record().save(tmp_path).read_text())
    assert content["format"] == "rsfuse-run"
    assert content["format_version"] == 1
    assert content["rsfuse_version"]


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("weak", 3), ("refused", 3)])
def test_exit_code_follows_the_status(status: str, code: int) -> None:
    assert record(status=status).exit_code == code


@pytest.mark.parametrize("changes", [{"status": "fine"}, {"confidence": 1.2}])
def test_impossible_record_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(InputError):
        record(**changes)


def test_folder_without_record_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a run folder"):
        RunRecord.load(tmp_path)


def test_record_of_another_program_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {"format": "other"})
    with pytest.raises(InputError, match="not the record of an rsfuse run"):
        RunRecord.load(tmp_path)


def test_record_of_a_later_format_names_its_writer(tmp_path: Path) -> None:
    write_json(
        tmp_path / "run.json",
        {"format": "rsfuse-run", "format_version": 2, "rsfuse_version": "9.1.0"},
    )
    with pytest.raises(InputError, match=r"9\.1\.0"):
        RunRecord.load(tmp_path)


def test_incomplete_record_names_the_missing_key(tmp_path: Path) -> None:
    content = record().to_dict()
    del content["seconds"]
    write_json(tmp_path / "run.json", content)
    with pytest.raises(InputError, match="seconds"):
        RunRecord.load(tmp_path)


def test_unknown_keys_of_a_record_are_ignored(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {**record(rsfuse_version="0.1.0").to_dict(), "later": 1})
    assert RunRecord.load(tmp_path) == record(rsfuse_version="0.1.0")


def test_json_is_strict_and_knows_numpy(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(
        path,
        {
            "nan": float("nan"),
            "inf": np.float32(np.inf),
            "array": np.eye(2),
            "integer": np.int64(3),
            "flag": np.bool_(True),
            "path": Path("a/b"),
            "tuple": (1, 2.5),
        },
    )
    assert json.loads(path.read_text()) == {
        "nan": None,
        "inf": None,
        "array": [[1.0, 0.0], [0.0, 1.0]],
        "integer": 3,
        "flag": True,
        "path": "a/b",
        "tuple": [1, 2.5],
    }


def test_what_json_cannot_hold_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"object": object()})
    assert list(tmp_path.iterdir()) == []


def test_damaged_json_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": ')
    with pytest.raises(InputError, match="not valid JSON"):
        read_json(tmp_path / "a.json")


def test_missing_json_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_json(tmp_path / "a.json")


def test_atomic_path_keeps_the_suffix_and_folder(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "deep" / "a.tif") as temporary:
        assert temporary.suffix == ".tif"
        assert temporary.parent == tmp_path / "deep"
        temporary.write_text("x")
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.tif"]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_failed_write_keeps_the_earlier_file(tmp_path: Path, failure: type[BaseException]) -> None:
    path = tmp_path / "a.tif"
    path.write_text("before")

    def write_and_fail() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            temporary.with_name(temporary.name + ".aux.xml").write_text("sidecar")
            raise failure

    with pytest.raises(failure):
        write_and_fail()
    assert [p.name for p in tmp_path.iterdir()] == ["a.tif"]
    assert path.read_text() == "before"


def test_full_disk_becomes_an_output_error_with_a_fix(tmp_path: Path) -> None:
    def write_on_full_disk() -> None:
        with atomic_path(tmp_path / "a.tif") as temporary:
            temporary.write_text("half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OutputError, match="no space left") as caught:
        write_on_full_disk()
    assert "free some space" in caught.value.fix
    assert list(tmp_path.iterdir()) == []


def test_error_of_an_input_is_not_blamed_on_the_output(tmp_path: Path) -> None:
    def read_damaged_while_writing() -> None:
        with atomic_path(tmp_path / "a.tif"):
            raise RasterError("in.tif is damaged")

    with pytest.raises(RasterError, match=r"in\.tif"):
        read_damaged_while_writing()


def test_writing_onto_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="folder"):
        write_json(tmp_path, {})


def test_written_file_has_the_usual_permissions(tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        write_json(tmp_path / "a.json", {})
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o644


def test_new_output_folder_is_made_with_parents(tmp_path: Path) -> None:
    assert prepare_output(tmp_path / "a" / "b").is_dir()
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_used_output_folder_needs_overwrite(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty") as caught:
        prepare_output(tmp_path)
    assert "--overwrite" in caught.value.fix


def test_overwrite_removes_the_earlier_run_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    outside = tmp_path / "outside.tif"
    for path in (folder / "transform.json", folder / "a.csv", folder / "mine.txt", outside):
        path.write_text("x")
    record(
        outputs={"transform": "transform.json", "points": ["a.csv"], "other": "../outside.tif"}
    ).save(folder)
    prepare_output(folder, overwrite=True)
    assert [p.name for p in folder.iterdir()] == ["mine.txt"]
    assert outside.exists()


def test_overwrite_replaces_a_damaged_record(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    prepare_output(tmp_path, overwrite=True)
    assert list(tmp_path.iterdir()) == []


def test_resume_keeps_earlier_files(tmp_path: Path) -> None:
    (tmp_path / "manifest").write_text("x")
    prepare_output(tmp_path, resume=True)
    assert (tmp_path / "manifest").exists()


def test_output_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        prepare_output(tmp_path / "out")


def test_output_folder_below_a_file_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(OutputError):
        prepare_output(tmp_path / "out" / "deep")


def test_an_output_that_is_an_input_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ms.tif").write_text("x")
    (tmp_path / "link.tif").symlink_to(tmp_path / "ms.tif")
    for output in (tmp_path / "ms.tif", tmp_path / "a" / ".." / "ms.tif", tmp_path / "link.tif"):
        with pytest.raises(InputError, match="is an input") as caught:
            distinct_outputs([tmp_path / "map.tif", output], [tmp_path / "ms.tif"])
        assert caught.value.exit_code == 2


def test_two_outputs_of_one_path_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="two results"):
        distinct_outputs(["map.tif", "map.qml", tmp_path / "map.tif"])


def test_outputs_beside_inputs_are_accepted(tmp_path: Path) -> None:
    distinct_outputs([tmp_path / "map.tif"], [tmp_path / "ms.tif", "https://host/map.tif"])


def test_times_are_utc_with_a_trailing_z() -> None:
    assert utc_now().endswith("Z")
    assert len(utc_now()) == len("2026-11-25T02:00:00Z")


def test_tables_are_aligned() -> None:
    from rsfuse.runs import text_table

    assert text_table([["class", "n"], ["water", "120"], ["a", "7"]]) == (
        "class    n\nwater  120\na        7\n"
    )


def test_a_staged_folder_replaces_a_run_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with staged(folder) as scratch:
        assert scratch.parent == tmp_path
        (scratch / "a.txt").write_text("old")
        record(outputs={"a": "a.txt"}).save(scratch)
        assert not folder.exists()
    with pytest.raises(InputError, match="not empty"), staged(folder):
        pass

    def fail() -> None:
        with staged(folder, overwrite=True) as scratch:
            (scratch / "a.txt").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (folder / "a.txt").read_text() == "old"
    with staged(folder, overwrite=True) as scratch:
        (scratch / "b.txt").write_text("new")
        record(outputs={"b": "b.txt"}).save(scratch)
        assert (folder / "a.txt").read_text() == "old"
    assert sorted(path.name for path in folder.iterdir()) == ["b.txt", "run.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("exchange", [True, False])
def test_files_that_no_run_wrote_stay(
    tmp_path: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:
        monkeypatch.setattr("rsfuse.runs.exchange_folders", lambda one, other: False)
    folder = tmp_path / "out"
    with staged(folder) as scratch:
        (scratch / "deep").mkdir()
        (scratch / "deep" / "a.txt").write_text("old")
        record(outputs={"a": "deep/a.txt"}).save(scratch)
    if exchange:
        (folder / "mine.txt").write_text("mine")
    with staged(folder, overwrite=True) as scratch:
        (scratch / "deep").mkdir()
        (scratch / "deep" / "b.txt").write_text("new")
        record(outputs={"b": "deep/b.txt"}).save(scratch)
    assert (folder / "mine.txt").exists() == exchange
    assert not (folder / "deep" / "a.txt").exists()
    assert (folder / "deep" / "b.txt").read_text() == "new"
    assert RunRecord.load(folder).outputs == {"b": "deep/b.txt"}


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("exchange", [True, False])
def test_a_link_to_a_folder_stays_and_its_folder_takes_the_run(
    tmp_path: Path, earlier: bool, exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:
        monkeypatch.setattr("rsfuse.runs.exchange_folders", lambda one, other: False)
    disk, link = tmp_path / "far" / "disk", tmp_path / "link"
    disk.mkdir(parents=True)
    link.symlink_to(disk)
    if earlier:
        (disk / "a.txt").write_text("old")
        record(outputs={"a": "a.txt"}).save(disk)
        with pytest.raises(InputError, match="not empty"), staged(link):
            pass
    with staged(link, overwrite=earlier) as scratch:
        (scratch / "b.txt").write_text("new")
        record(outputs={"b": "b.txt"}).save(scratch)
    assert link.is_symlink()
    assert sorted(path.name for path in disk.iterdir()) == ["b.txt", "run.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["far", "link"]
    assert [path.name for path in disk.parent.iterdir()] == ["disk"]


def test_a_link_to_a_folder_that_is_not_there_yet_leads_to_the_run(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    with staged(tmp_path / "link") as scratch:
        record().save(scratch)
    assert (tmp_path / "link").is_symlink()
    assert RunRecord.load(tmp_path / "disk") == RunRecord.load(tmp_path / "link")


def test_a_folder_that_is_stood_in_keeps_its_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    with staged(folder) as scratch:
        record().save(scratch)
    monkeypatch.chdir(folder)
    before = folder.stat().st_ino
    with staged(".", overwrite=True) as scratch:
        record(task="detect").save(scratch)
    assert folder.stat().st_ino == before
    assert RunRecord.load(".").task == "detect"


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    import platform

    dead = tmp_path / f".out.{platform.node()}-999999999-0123abcd.part"
    alive = tmp_path / f".out.{platform.node()}-{os.getpid()}-0123abcd.part"
    for folder in (dead, alive):
        folder.mkdir()
    with staged(tmp_path / "out") as scratch:
        record().save(scratch)
    assert not dead.exists()
    assert alive.exists()
