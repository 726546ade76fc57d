"""Files are whole or absent, whatever happens while they are written."""

import errno
import os
import stat
from pathlib import Path

import pytest

from tutelage.files import TEMPORARY, atomic, atomic_folder, read_json, remove_stale, write_json, write_text
from tutelage.types import InputError


def test_json_round_trip_leaves_one_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": [1, 2]})
    assert read_json(tmp_path / "a.json") == {"x": [1, 2]}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_an_error_keeps_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(KeyError), atomic(target) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_is_said_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.txt: the disk is full"), atomic(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_another_os_error_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="strange"), atomic(tmp_path / "a.txt"):
        raise OSError(errno.EIO, "strange")


def test_not_a_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe"])
def test_broken_json_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.json: not valid JSON"):
        read_json(tmp_path / "a.json")
    with pytest.raises(InputError, match="does not exist"):
        read_json(tmp_path / "b.json")


def test_content_is_on_the_disk_before_the_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor: int) -> None:
        events.append(
            f"sync {'folder' if stat.S_ISDIR(os.fstat(descriptor).st_mode) else os.fstat(descriptor).st_size}"
        )
        fsync(descriptor)

    def noted_replace(source: Path, target: Path) -> None:
        events.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    write_text(tmp_path / "a.txt", "12345")
    assert events == ["sync 5", "rename", "sync folder"]


def test_what_a_killed_writer_left_goes_and_what_is_being_written_stays(tmp_path: Path) -> None:
    (tmp_path / ".tmp-0123456789ab-a.json").write_text("half")
    (tmp_path / ".tmp-ba9876543210-folder" / "inside").mkdir(parents=True)
    (tmp_path / "a.json").write_text("whole")
    (tmp_path / ".tmp-foreign").write_text("not ours")
    with atomic(tmp_path / "b.txt") as file, atomic_folder(tmp_path / "c") as folder:
        file.write_text("being written")
        remove_stale(tmp_path.rglob(TEMPORARY))
        assert {path.name for path in tmp_path.iterdir()} == {"a.json", file.name, folder.name, ".tmp-foreign"}
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", "b.txt", "c", ".tmp-foreign"}


def test_a_folder_takes_the_place_of_another_whole(tmp_path: Path) -> None:
    for content in ("first", "second"):
        with atomic_folder(tmp_path / "model", replace=True) as folder:
            (folder / content).write_text(content)
    with pytest.raises(KeyError), atomic_folder(tmp_path / "model", replace=True) as folder:
        (folder / "third").write_text("half")
        raise KeyError
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["second"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_and_a_link_to_itself_are_no_json(tmp_path: Path) -> None:
    (tmp_path / "loop.json").symlink_to(tmp_path / "loop.json")
    for path in (tmp_path, tmp_path / "loop.json"):
        with pytest.raises(InputError, match="cannot be read"):
            read_json(path)
