from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import files


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
