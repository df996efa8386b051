"""Outputs go where the user pointed: through links, into pipes and devices, whole or not at all."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from helix_sim.core.errors import Exit, Stopped
from helix_sim.core.files import appearing, require_writable, write_text


def test_a_link_is_followed_and_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "step.json")
    for text in ("new", "newer"):
        write_text(tmp_path / "link", text)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "real" / "step.json").read_text() == text


def test_a_pipe_is_written_into_and_stays_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()), daemon=True)
    reader.start()
    require_writable(tmp_path / "pipe")
    write_text(tmp_path / "pipe", "through")
    reader.join(10)
    assert read == ["through"]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_device_is_written_into_and_stays_a_device() -> None:
    write_text(Path("/dev/null"), "gone")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_a_full_device_is_said_by_the_name_that_was_given() -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        write_text(Path("/dev/full"), "much")
    assert caught.value.filename == "/dev/full"


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_new_file_has_the_mode_of_the_umask_and_an_old_one_keeps_its_own(umask: int, tmp_path: Path) -> None:
    (tmp_path / "old").touch()
    (tmp_path / "old").chmod(0o640)
    before = os.umask(umask)
    try:
        for name in ("new", "old"):
            write_text(tmp_path / name, "text")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("new", "old")]
    assert modes == [0o666 & ~umask, 0o640]


def test_what_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    write_text(tmp_path / "a.csv", "old")
    with pytest.raises(ZeroDivisionError), appearing(tmp_path / "a.csv") as partial:
        partial.write_text("half" * (1 // 0))
    assert (tmp_path / "a.csv").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_a_name_of_the_longest_kind_can_be_written(tmp_path: Path) -> None:
    name = "a" * 250 + ".json"
    write_text(tmp_path / name, "text")
    assert (tmp_path / name).read_text() == "text"


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        write_text(tmp_path, "text")
    with pytest.raises(Stopped, match="is a directory"):
        require_writable(tmp_path)


@pytest.mark.parametrize("folder", [False, True])
def test_whether_a_place_can_be_written_is_known_before_and_asking_leaves_no_trace(
    folder: bool, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    require_writable(tmp_path / "a" / "b" / "c.json", folder=folder)
    for path in (tmp_path / "file" / "c.json", Path("/proc/helix/c.json"), Path("/sys/c.json")):
        with pytest.raises(Stopped, match="cannot be written") as caught:
            require_writable(path, folder=folder)
        assert caught.value.code == Exit.CANNOT_WRITE
        assert caught.value.sentence.startswith(str(path))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_is_known_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(Stopped, match="the disk is full") as caught:
        require_writable(tmp_path / "a.json")
    assert caught.value.code == Exit.DISK_FULL
    assert list(tmp_path.iterdir()) == []
