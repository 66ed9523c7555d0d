"""No file of weights takes many times its size in memory, or time without end: each is read in a process that is measured."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from model.matterport.weight_file import open_weights
from model.weights import h5_files
from model.weights.pickle_reader import RefusedError
from model.weights.weight_files import read_weights
from pipeline.command import UserError
from tests.model.weights.torch_format import Call, Storage, save_zip, tensor

MEGABYTE = 2**20
MEASURE = """
import json, resource, sys, time
from model.weights.pickle_reader import RefusedError
from model.weights.weight_files import read_weights
from pipeline.command import UserError
from tests.memory import peak_kib
before = peak_kib()
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]), -1))
message = None
try:
    arrays = read_weights(sys.argv[1])
    message = f"{len(arrays)} arrays, {len({id(a) for a in arrays.values()})} different"
except UserError as error:
    message = str(error)
peak = max(peak_kib(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
print(json.dumps([message, 1024 * (peak - before), time.process_time()]))
"""


def measured(path: Path, most: int = 4 * 2**30) -> tuple[str, int, float]:
    """What was said of a file, the bytes that it took beside those of the interpreter, and the seconds of computing.

    most: address space of the process, bytes.
    """
    child = subprocess.run([sys.executable, "-c", MEASURE, str(path), str(most)], capture_output=True, text=True, timeout=200)
    assert child.returncode == 0, child.stderr
    message, peak, seconds = json.loads(child.stdout)
    assert "\n" not in message
    return message, peak, seconds


def many_names(count: int, size: int) -> bytes:
    """A state dict with one float16 array under many names."""
    array = np.zeros(size // 2, np.float16)
    return pickle.dumps({f"layer{number}.weight": array for number in range(count)}, 2)


def test_an_array_under_a_thousand_names_is_converted_once(tmp_path: Path) -> None:
    path = tmp_path / "w.pkl"
    path.write_bytes(many_names(1000, MEGABYTE))
    message, peak, _ = measured(path)
    assert message == "1000 arrays, 1 different"
    assert peak < 32 * MEGABYTE  # 2 GB, if each name had a float32 of its own
    path.write_bytes(many_names(1000, 8 * MEGABYTE))
    message, peak, _ = measured(path)
    assert message == "1000 arrays, 1 different" and peak < 128 * MEGABYTE


def ordered_dict_bomb(entries: int, calls: int) -> bytes:
    """A dictionary of two-letter keys, given to OrderedDict again and again, each answer kept."""
    keys = [chr(97 + number // 26 % 26) + chr(97 + number % 26) + str(number) for number in range(entries)]
    given = b"}(" + b"".join(b"X" + struct.pack("<I", 2) + key[:2].encode() + b"N" for key in keys) + b"u\x85q\x000"
    return b"\x80\x02" + given + b"ccollections\nOrderedDict\nq\x010](" + b"h\x01h\x00R" * calls + b"e."


def pairs_bomb(entries: int, calls: int) -> bytes:
    """A list of different pairs, made a dictionary again and again, each answer kept."""
    pairs = b"".join(b"J" + struct.pack("<i", number) + b"N\x86" for number in range(entries))
    return b"\x80\x02](" + pairs + b"e\x85q\x000ccollections\nOrderedDict\nq\x010](" + b"h\x01h\x00R" * calls + b"e."


@pytest.mark.parametrize("content", [ordered_dict_bomb(600, 30_000), pairs_bomb(8_000, 20_000)], ids=["keys", "pairs"])
def test_dictionaries_made_over_and_over_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "w.pkl"
    path.write_bytes(content)
    assert len(content) < 300_000
    message, peak, seconds = measured(path)
    assert message.startswith(f"{path}: ") and ("calls collections.OrderedDict" in message or "many times its size" in message)
    assert peak < 300 * MEGABYTE and seconds < 10


def test_views_that_would_become_many_times_the_file_are_refused_before_they_are_made(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    bits = Storage(np.zeros(4 * MEGABYTE, np.uint16), "BFloat16")
    save_zip(path, {str(first): bits.view((4 * MEGABYTE - first,), (1,), offset=first) for first in range(200)})
    message, peak, _ = measured(path)
    assert "over and over" in message and peak < 64 * MEGABYTE


def test_a_file_for_which_the_memory_does_not_suffice_is_told_in_a_line(tmp_path: Path) -> None:
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps({"w": np.zeros(200 * MEGABYTE, np.float16)}, 4))
    message, _, _ = measured(path, most=2**30)
    assert message == f"{path}: reading it takes more memory than this process can have"


def flat(shape: tuple[Any, ...], strides: tuple[Any, ...], offset: Any = 0) -> Call:
    return Storage(np.arange(6, dtype=np.float32)).view(shape, strides, offset)


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [
        ((0, 2**62), (1, 1), 0),
        ((2**40, 0, 2**40), (1, 1, 1), 0),
        ((2**63,), (1,), 0),
        ((1,), (2**63,), 0),
        ((1,), (1,), 2**63),
        ((2, 2), (2**62, 1), 0),
        ((2**32, 2**32), (0, 0), 0),
    ],
)
def test_shapes_and_strides_beyond_int64_are_refused(shape: Any, strides: Any, offset: Any, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    save_zip(path, {"w": flat(shape, strides, offset), "good": tensor(np.zeros(2, np.float32))})
    with pytest.raises(UserError, match="damaged"):
        read_weights(path)


@pytest.mark.parametrize(
    ("shape", "strides", "offset"), [((1, 6), (2**62, 1), 0), ((0,), (2**62,), 0), ((3, 0), (2**62, 1), 6), ((0,), (1,), 2**62)]
)
def test_strides_along_which_there_is_nothing_may_be_anything(shape: Any, strides: Any, offset: Any, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    save_zip(path, {"w": flat(shape, strides, offset), "empty": tensor(np.zeros((0, 2), np.float32))})
    read = read_weights(path)
    assert read["w"].shape == shape and read["empty"].shape == (0, 2)
    np.testing.assert_array_equal(read["w"].ravel(), np.arange(read["w"].size))


def test_pickled_shapes_beyond_int64_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pkl"
    content = pickle.dumps({"w": np.zeros((0, 5), np.float32)}, 2)
    assert content.count(b"K\x00K\x05\x86") == 1
    for sizes in (b"K\x00\x8a\x09" + bytes(8) + b"\x01\x86", b"K\x00\x8a\x08" + b"\xff" * 7 + b"\x7f\x86"):
        path.write_bytes(content.replace(b"K\x00K\x05\x86", sizes))
        with pytest.raises(UserError, match="damaged"):
            read_weights(path)


NOT_UTF_8: dict[str, Callable[[Path], None]] = {
    "pickle": lambda path: write_pickle(path, {"a\udcff": np.zeros(2, np.float32)}),
    "torch": lambda path: save_zip(path, {"a\udcff": tensor(np.zeros(2, np.float32))}),
    "h5": lambda path: write_h5_name(path, b"a\xff"),
    "zip": lambda path: write_zip_name(path),
}


def write_pickle(path: Path, value: Any) -> None:
    path.write_bytes(pickle.dumps(value, 2))


def write_h5_name(path: Path, name: bytes) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset(name, data=np.zeros(64, np.float32))


def write_zip_name(path: Path) -> None:
    save_zip(path, {"w": tensor(np.zeros(2, np.float32))}, more={"\u00e9": b"1"})
    content = path.read_bytes()
    assert content.count("\u00e9".encode()) == 2
    path.write_bytes(content.replace("\u00e9".encode(), b"\xff\xfe"))


@pytest.mark.parametrize("name", NOT_UTF_8)
def test_a_name_that_is_no_utf_8_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    NOT_UTF_8[name](path)
    with pytest.raises(UserError, match=r"damaged|not an archive") as caught:
        read_weights(path)
    str(caught.value).encode()


def with_a_ring_in_its_heap(path: Path) -> None:
    """A file whose group has a local heap with a free block that names itself as the next one."""
    with h5py.File(path, "w") as file:
        file["a/b"] = np.zeros(64, np.float32)
    content = bytearray(path.read_bytes())
    changed, place = 0, content.find(b"HEAP")
    while place >= 0:
        _, size, free, segment = struct.unpack_from("<4s4xQQQ", content, place)
        if free < size:
            struct.pack_into("<Q", content, segment + free, free)
            changed += 1
        place = content.find(b"HEAP", place + 1)
    assert changed
    path.write_bytes(bytes(content))


def test_a_heap_that_leads_round_and_round_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.h5"
    with_a_ring_in_its_heap(path)
    message, peak, _ = measured(path, most=16 * 2**30)
    assert message.startswith(f"{path}: ") and "memory allocation failed" in message  # it went round until then
    assert peak < 2 * h5_files.SPARE_MEMORY


@pytest.mark.parametrize("name", ["fifo", "device", "giant"])
def test_what_is_no_regular_file_is_refused_at_once(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "fifo":
        os.mkfifo(path)
    elif name == "device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.write(b"\x80\x02")
            file.truncate(2**40)
    with pytest.raises(UserError, match=r"FIFO|device|bytes long, at most"):
        read_weights(path)
    with pytest.raises(UserError, match=r"FIFO|device|bytes long, at most"), open_weights(path):
        pass


def test_the_old_networks_files_are_tried_likewise(tmp_path: Path) -> None:
    path = tmp_path / "w.h5"
    with_a_ring_in_its_heap(path)
    with pytest.raises(UserError) as caught, open_weights(path):
        pass
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    with h5py.File(path, "w") as file:
        file["conv1/conv1/kernel:0"] = np.zeros((7, 7, 3, 64), np.float32)
    with open_weights(path) as content:
        assert content.read(next(iter(content.shapes))).shape == (7, 7, 3, 64)


def test_limits_of_the_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time, memory and a crash, by a child that does each instead of reading."""
    path = tmp_path / "w.h5"
    path.write_bytes(b"")
    monkeypatch.setattr(h5_files, "LEAST_SECONDS", 1)
    monkeypatch.setattr(h5_files, "TIMES_LONGER", 3)
    for does, message in (
        ("import resource\nresource.setrlimit(resource.RLIMIT_CPU, (1, 2))\nwhile True: pass", "within 1 s of computing"),
        ("import time; time.sleep(100)", "did not end within 3 s"),
        ("import os; os.kill(os.getpid(), 11)", "ends with signal 11"),
    ):
        monkeypatch.setattr(h5_files, "_TRIAL", does)
        with pytest.raises(RefusedError, match=message):
            h5_files.try_in_a_child(path, h5_files.read_h5)
    monkeypatch.setattr(h5_files, "_TRIAL", "raise SystemExit('broken')")
    with pytest.raises(OSError, match="broken"):
        h5_files.try_in_a_child(path, h5_files.read_h5)
