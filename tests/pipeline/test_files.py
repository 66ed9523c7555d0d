from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from pipeline import files
from pipeline.command import UserError


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_file(path, "one")
    files.write_file(path, b"two")
    assert path.read_bytes() == b"two" and list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    files.write_file(path, "one")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_file(path, "two")
    assert path.read_text() == "one" and list(tmp_path.iterdir()) == [path]


def test_a_failure_names_the_file_that_was_wanted(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    for path in (tmp_path / "a.png", tmp_path / "absent" / "b.png"):
        with pytest.raises(OSError, match=r"Is a directory|No such file") as caught:
            files.write_file(path, "one")
        assert caught.value.filename == str(path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_second_writer_is_refused_in_one_line_and_the_folder_is_left_clean(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    with files.only_writer(folder, "training"):
        for what, said in (("training", "another training"), ("import", "a training")):
            with (
                pytest.raises(UserError, match=rf"run: {said} \(process {os.getpid()} on .*\) is writing"),
                files.only_writer(folder, what),
            ):
                pass
        (folder / "checkpoint").write_text("")
    assert [path.name for path in folder.iterdir()] == ["checkpoint"]
    with files.only_writer(tmp_path / "empty", "export"):
        pass
    assert not (tmp_path / "empty").exists()


def test_the_lock_of_a_killed_process_holds_nobody_up(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pipeline import files\n"
        "with files.only_writer(sys.argv[1], 'training'): print(1, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"1\n"
    with pytest.raises(UserError, match=f"another training .process {process.pid} "), files.only_writer(tmp_path, "training"):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert (tmp_path / ".lock").exists()
    with files.only_writer(tmp_path, "training"):
        pass


def test_of_many_writers_that_come_and_go_one_writes_at_a_time(tmp_path: Path) -> None:
    inside, most, entered = 0, 0, 0
    counting = threading.Lock()

    def work() -> None:
        nonlocal inside, most, entered
        for _ in range(200):
            with contextlib.suppress(UserError), files.only_writer(tmp_path / "a", "export"):
                with counting:
                    inside, entered = inside + 1, entered + 1
                    most = max(most, inside)
                with counting:
                    inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1 and entered > 50


def test_a_link_called_lock_does_not_empty_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic links"), files.only_writer(tmp_path / "run", "training"):
        pass
    assert (tmp_path / "precious").read_text() == "kept"


def test_only_regular_files_of_bounded_size_are_opened(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link_to_fifo").symlink_to(tmp_path / "fifo")
    with (tmp_path / "giant").open("wb") as giant:
        giant.truncate(1 << 40)
    for name in ("a", "link"):
        with files.open_regular(tmp_path / name, 3) as file:
            assert file.read() == b"abc"
    refused = {
        "fifo": "a FIFO, not a file",
        "link_to_fifo": "a FIFO, not a file",
        "giant": "1099511627776 bytes",
        "a": "3 bytes long, at most 2",
    }
    for name, why in refused.items():
        with pytest.raises(OSError, match=why) as caught:
            files.open_regular(tmp_path / name, 2)
        assert caught.value.filename == str(tmp_path / name)
    with pytest.raises(OSError, match="a device, not a file"):
        files.open_regular(Path("/dev/zero"), 2)
    with pytest.raises(OSError, match="a folder, not a file"):
        files.open_regular(tmp_path, 2)
    with pytest.raises(FileNotFoundError):
        files.open_regular(tmp_path / "absent", 2)


def names(value: Any) -> list[str]:
    if value == {"entries": "own"}:
        raise UserError("its own words")
    return [str(entry["name"].lower()) for entry in value["entries"]]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "not JSON"),
        (b"[1, 2", "not JSON"),
        (b"\xff\xfe\x00", "can't decode"),
        (b"[" * 100_000, "RecursionError"),
        (b"{}", "'entries' is missing"),
        (b'{"entries": "own"}', "its own words"),
        (b"[]", "a value of another type than the one that belongs there"),
        (b'{"entries": 3}', "a value of another type"),
        (b'{"entries": [{"name": 3}]}', "a value of another type"),
        (b"1" * 5000, "ValueError"),
    ],
)
def test_a_damaged_file_is_one_line_with_its_name(content: bytes, why: str, tmp_path: Path) -> None:
    path = tmp_path / "skeleton.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"skeleton.json: not a skeleton .*{why}.*copy it again") as caught:
        files.checked_json(path, "not a skeleton", names)
    assert "\n" not in str(caught.value)


def test_a_sound_file_is_parsed_and_what_is_no_file_is_said(tmp_path: Path) -> None:
    path = tmp_path / "skeleton.json"
    path.write_text('{"entries": [{"name": "A"}]}')
    assert files.checked_json(path, "not a skeleton", names) == ["a"]
    with pytest.raises(UserError, match="no such file"):
        files.checked_json(tmp_path / "absent.json", "not a skeleton", names)
    os.mkfifo(tmp_path / "fifo.json")
    with pytest.raises(UserError, match="a FIFO, not a file"):
        files.checked_json(tmp_path / "fifo.json", "not a skeleton", names)
