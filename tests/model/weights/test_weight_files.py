"""Weights of every format arrive as they were written; no file can have anything run, and each bad one is told in a line."""

from __future__ import annotations

import builtins
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.weights.torch_files import LEGACY_MAGIC
from model.weights.weight_files import read_weights
from pipeline.command import UserError
from tests.model.weights.torch_format import Call, Named, Persistent, Storage, save_legacy, save_zip, tensor

WEIGHTS = {"conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2), "bn.num_batches_tracked": np.array(7)}


def write_safetensors(path: Path, header: dict[str, Any], data: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def assert_equal(read: dict[str, Any], written: dict[str, Any]) -> None:
    assert read.keys() == written.keys()
    for name, value in written.items():
        assert read[name].shape == value.shape
        np.testing.assert_array_equal(read[name], value)


@pytest.mark.parametrize("save", [save_zip, save_legacy])
def test_tensors_of_torch_arrive(save: Callable[..., None], tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    save(path, OrderedDict((name, tensor(value)) for name, value in WEIGHTS.items()))
    assert_equal(read_weights(path), WEIGHTS)


@pytest.mark.parametrize("save", [save_zip, save_legacy])
def test_views_strides_and_shared_storages(save: Callable[..., None], tmp_path: Path) -> None:
    elements = np.arange(24, dtype=np.float32)
    storage = Storage(elements)
    state = {
        "whole": storage.view((4, 6), (6, 1)),
        "transposed": storage.view((6, 4), (1, 6)),
        "channels_last": storage.view((2, 3, 2, 2), (12, 1, 6, 3)),
        "part": storage.view((2, 2), (6, 1), offset=8),
        "scalar": storage.view((), (), offset=5),
        "none": storage.view((0, 3), (3, 1)),
    }
    save(tmp_path / "weights.pth", state)
    grid = elements.reshape(4, 6)
    assert_equal(
        read_weights(tmp_path / "weights.pth"),
        {
            "whole": grid,
            "transposed": grid.T,
            "channels_last": elements.reshape(2, 2, 2, 3).transpose(0, 3, 1, 2),
            "part": grid[1:3, 2:4],
            "scalar": np.float32(5),
            "none": np.zeros((0, 3)),
        },
    )


@pytest.mark.parametrize("save", [save_zip, save_legacy])
def test_half_bfloat16_and_double_become_float32(save: Callable[..., None], tmp_path: Path) -> None:
    values = np.array([1.0, -2.5, 0.0, 3.140625, 1e4], np.float32)  # exact in all of them
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    bits_back = (bits.astype(np.uint32) << 16).view(np.float32)
    state = {
        "half": tensor(values.astype(np.float16)),
        "double": tensor(values.astype(np.float64)),
        "bfloat16": Storage(bits, "BFloat16").view((5,), (1,)),
    }
    save(tmp_path / "weights.pth", state)
    read = read_weights(tmp_path / "weights.pth")
    assert {array.dtype for array in read.values()} == {np.dtype(np.float32)}
    assert_equal(read, {"half": values.astype(np.float16), "double": values, "bfloat16": bits_back})


def test_a_checkpoint_gives_its_model_alone(tmp_path: Path) -> None:
    state = {name: tensor(value) for name, value in WEIGHTS.items()}
    checkpoint = {"model": state, "optimizer": {"state": {0: tensor(np.zeros(3, np.float32))}}, "epoch": 12}
    save_zip(tmp_path / "checkpoint.pth", checkpoint)
    assert_equal(read_weights(tmp_path / "checkpoint.pth"), WEIGHTS)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("wrapped", [True, False])
def test_pickles_of_arrays(protocol: int, wrapped: bool, tmp_path: Path) -> None:
    weights = WEIGHTS | {"fortran": np.asfortranarray(WEIGHTS["conv.weight"]), "big": np.arange(3, dtype=">f4")}
    content = {"model": weights, "__author__": "Somebody"} if wrapped else weights
    (tmp_path / "weights.pkl").write_bytes(pickle.dumps(content, protocol))
    assert_equal(read_weights(tmp_path / "weights.pkl"), weights)


def test_a_pickle_of_python_2(tmp_path: Path) -> None:
    # What cPickle 2 wrote for {"blobs": {"conv1_w": array([1, 2], "<f4")}}: text and bytes are one, and latin-1.
    content = (
        b"\x80\x02}U\x05blobs}U\x07conv1_wcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x08" + np.array([1, 2], "<f4").tobytes() + b"tbss."
    )
    assert pickle.loads(content, encoding="latin1")["blobs"]["conv1_w"].tolist() == [1, 2]
    (tmp_path / "R-50.pkl").write_bytes(content)
    assert_equal(read_weights(tmp_path / "R-50.pkl"), {"conv1_w": np.array([1, 2], np.float32)})


def test_safetensors(tmp_path: Path) -> None:
    values = np.array([[1.5, -2.0]], np.float32)
    bits = (values.view(np.uint32) >> 16).astype("<u2")
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]},
        "b": {"dtype": "BF16", "shape": [1, 2], "data_offsets": [8, 12]},
        "c": {"dtype": "I64", "shape": [], "data_offsets": [12, 20]},
    }
    write_safetensors(tmp_path / "w.safetensors", header, values.tobytes() + bits.tobytes() + struct.pack("<q", 7))
    assert_equal(read_weights(tmp_path / "w.safetensors"), {"a": values, "b": values, "c": np.array(7)})


def test_h5(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file["conv1/conv1/kernel:0"] = WEIGHTS["conv.weight"]
        file["names"] = "text is no tensor"
    assert_equal(read_weights(tmp_path / "w.h5"), {"conv1/conv1/kernel:0": WEIGHTS["conv.weight"]})


def test_oracles_in_all_their_formats(oracles: Path) -> None:
    now, before = (read_weights(oracles / "torchvision" / name) for name in ("weights.pth", "weights_old_names.pth"))
    assert len(now) == 148
    renamed = {
        re.sub(r"(inner_blocks|layer_blocks|conv)\.(\d)\.0\.(weight|bias)$", r"\1.\2.\3", name): a for name, a in now.items()
    }
    renamed = {re.sub(r"rpn\.head\.conv\.0\.", "rpn.head.conv.", name): array for name, array in renamed.items()}
    assert_equal(before, renamed)
    with (oracles / "detectron2" / "model_final.pkl").open("rb") as file:
        assert_equal(read_weights(file.name), pickle.load(file)["model"])


# Hostile files. Each attack that would run something creates a witness, which none may have.


class Reduced:
    """An object whose unpickling calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def attacks(witness: Path) -> dict[str, bytes]:
    touch = f"open({str(witness)!r}, 'w').close()"
    command = f"touch {witness}"
    name = f"{witness}".encode()
    array = pickle.dumps({"w": 1.0}, 2)
    return {
        "os.system": pickle.dumps({"w": Reduced(os.system, command)}, 2),
        "os.system, protocol 0": pickle.dumps({"w": Reduced(os.system, command)}, 0),
        "os.system, protocol 4": pickle.dumps({"w": Reduced(os.system, command)}, 4),
        "subprocess": pickle.dumps({"w": Reduced(subprocess.check_call, ["touch", str(witness)])}),
        "eval": pickle.dumps({"w": Reduced(builtins.eval, touch)}, 2),
        "exec": pickle.dumps({"w": Reduced(builtins.exec, touch)}, 2),
        "getattr": b"\x80\x02c__builtin__\ngetattr\ncos\npath\nU\x06system\x86R.",
        "getattr by dots": b"\x80\x04\x8c\x0bcollections\x8c\x13OrderedDict.__class__\x93.",
        "stack global of numbers": b"\x80\x04K\x01K\x02\x93.",
        "module of a known name": b"\x80\x02ccollections\nabc\n.",
        "INST": b"(S'" + command.encode() + b"'\nios\nsystem\n.",
        "INST behind a protocol": b"\x80\x02(S'" + command.encode() + b"'\nios\nsystem\n.",
        "OBJ": b"\x80\x02(cos\nsystem\nU" + bytes([len(command)]) + command.encode() + b"o.",
        "NEWOBJ": b"\x80\x02ccollections\nOrderedDict\n)\x81.",
        "NEWOBJ_EX": b"\x80\x04\x8c\x0bcollections\x8c\x0bOrderedDict\x93)}\x92.",
        "BUILD of a name": b"\x80\x02ccollections\nOrderedDict\n}U\x08__call__U\x01xsb.",
        "BUILD of a list": b"\x80\x02]}U\x01aK\x01sb.",
        "BUILD of a tuple": b"\x80\x02)(NN\x86b.",
        "EXT1": b"\x80\x02\x82\x01.",
        "EXT2": b"\x80\x02\x83\x01\x00.",
        "EXT4": b"\x80\x02\x84\x01\x00\x00\x00.",
        "persistent id": b"\x80\x02U\x01xQ.",
        "persistent id as text": b"\x80\x02Px\n.",
        "out-of-band buffer": b"\x80\x05\x97.",
        "a call of what a file made": b"\x80\x02U\x01x)R.",
        "a call of ndarray": b"\x80\x02cnumpy\nndarray\nK\x05\x85\x85R.",
        "nested pickle": b"\x80\x02cpickle\nloads\nU" + bytes([len(array)]) + array + b"\x85R.",
        "numpy's own unpickling": b"\x80\x02cnumpy\nload\nU" + bytes([len(name)]) + name + b"\x85R.",
        "encode to another codec": b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00hex\x86R.",
        "array of objects": pickle.dumps({"w": np.array([Reduced(os.system, command)], object)}, 2),
        "array of objects, no state": pickle.dumps({"w": np.array([None, {}], object)}, 2),
        "records": pickle.dumps({"w": np.zeros(2, [("a", "f4"), ("b", "O")])}, 2),
        "text array": pickle.dumps({"w": np.array(["a", "b"])}, 2),
    }


ATTACKS = list(attacks(Path("x")))


@pytest.fixture
def witness(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "witness"
    yield path
    assert not path.exists(), "code of the file has run"


def refused(path: Path) -> str:
    """The one line with which a file is refused."""
    with pytest.raises(UserError) as caught:
        read_weights(path)
    return one_line(path, str(caught.value))


def one_line(path: Path, message: str) -> str:
    assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < len(str(path)) + 300
    return message


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_runs_nothing(name: str, tmp_path: Path, witness: Path) -> None:
    content = attacks(witness)[name]
    (tmp_path / "weights.pkl").write_bytes(content)
    assert refused(tmp_path / "weights.pkl")
    # The same description inside of torch's formats.
    save_zip(tmp_path / "weights.pth", {}, more={"data.pkl": content})
    assert refused(tmp_path / "weights.pth")
    (tmp_path / "legacy.pth").write_bytes(pickle.dumps(LEGACY_MAGIC, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2) + content)
    assert refused(tmp_path / "legacy.pth")


def test_the_attacks_are_real(tmp_path: Path) -> None:
    """With Python's own unpickler the first of them do create their witness."""
    for name in ("os.system", "subprocess", "eval", "exec", "INST", "OBJ", "array of objects"):
        path = tmp_path / name.replace(" ", "_")
        subprocess.run([sys.executable, "-c", "import pickle, sys; pickle.load(sys.stdin.buffer)"], input=attacks(path)[name])
        assert path.exists(), name


def test_what_an_attack_named_is_said(tmp_path: Path, witness: Path) -> None:
    (tmp_path / "weights.pkl").write_bytes(attacks(witness)["os.system"])
    assert "refused: it names 'posix.system'" in refused(tmp_path / "weights.pkl")


def test_no_module_is_imported_for_a_name(tmp_path: Path) -> None:
    (tmp_path / "antigravity.pkl").write_bytes(b"\x80\x02cantigravity\nfly\n.")
    refused(tmp_path / "antigravity.pkl")
    assert "antigravity" not in sys.modules


def deep(count: int) -> bytes:
    return b"\x80\x02" + b"]" * count + b"a" * (count - 1) + b"."


def hash_bomb() -> bytes:
    """A tuple of itself twice, 40 levels deep, as a key: its hash takes 2^40 steps."""
    return b"\x80\x02}(" + b")" + b"".join(b"q%c" % k + b"h%c" % k + b"\x86" for k in range(40)) + b"K\x01u."


def encode_bomb() -> bytes:
    """A text of 1 MB, encoded 100,000 times."""
    text = b"X" + struct.pack("<I", 10**6) + b"a" * 10**6 + b"q\x00X\x06\x00\x00\x00latin1q\x01\x86q\x020"
    return b"\x80\x02" + text + b"c_codecs\nencode\nq\x03" + b"0h\x03h\x02Rq\x04" * 100_000 + b"."


def pairs_bomb() -> bytes:
    """A list of 100,000 equal pairs, made a dictionary 10,000 times."""
    pairs = b"](" + b"K\x01K\x02\x86q\x00" + b"h\x00" * 100_000 + b"e\x85q\x010"
    return b"\x80\x02" + pairs + b"ccollections\nOrderedDict\nq\x02" + b"0h\x02h\x01R" * 10_000 + b"."


def integer(size: int) -> bytes:
    """The instruction that makes an integer of `size` bytes."""
    return b"\x8b" + struct.pack("<I", size) + b"\x7f" * size


def array_of_shape(shape: bytes) -> bytes:
    """A pickle of a float32 array whose shape is what the instructions `shape` leave on the stack."""
    start = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
    return start + shape + b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R\x89U\x04abcdtb."


BOMBS = {
    "equal pairs": pairs_bomb(),
    "large keys": b"\x80\x02}(" + integer(10**6) + b"q\x00" + b"K\x01" + b"h\x00K\x01" * 200_000 + b"u.",
    "large sizes": array_of_shape(b"(" + integer(10**6) + b"q\x00" + b"h\x00" * 30 + b"t"),
    "many dimensions": array_of_shape(b"(" + b"K\x01" * 40 + b"t"),
    "deep nesting": deep(100_000),
    "hash of a tuple": hash_bomb(),
    "many copies": encode_bomb(),
    "many instructions": b"\x80\x02" + b"N0" * 500_000 + b"N.",
    "memo index": b"\x80\x02}r\xff\xff\xff\x7f.",
    "bytes": b"\x80\x03B\xff\xff\xff\x7fabc.",
    "8-byte length": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"abc.",
    "bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"abc.",
    "text": b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"abc.",
    "frame": b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"}.",
    "long integer": b"\x80\x02\x8b\xff\xff\xff\x7fabc.",
    "digits": b"\x80\x02L" + b"9" * 10**6 + b"L\n.",
    "array": pickle.dumps({"w": np.zeros(4, np.float32)}, 2).replace(b"K\x04\x85", b"J\xff\xff\xff\x7f\x85"),
    "pop of nothing": b"\x80\x020000.",
    "nothing on the stack": b"\x80\x02.",
    "no mark": b"\x80\x02t.",
    "no memo": b"\x80\x02h\x05.",
    "a number": b"\x80\x02K\x01.",
    "a list": b"\x80\x02].",
    "an empty dictionary": b"\x80\x02}.",
    "protocol 9": b"\x80\x09}.",
}


def test_the_array_of_the_bombs_is_an_array(tmp_path: Path) -> None:
    (tmp_path / "weights.pkl").write_bytes(b"\x80\x02}U\x01w" + array_of_shape(b"K\x01\x85")[2:-1] + b"s.")
    assert_equal(read_weights(tmp_path / "weights.pkl"), {"w": np.frombuffer(b"abcd", np.float32)})


READ_EACH = """
import json, pathlib, sys, time
from model.weights.weight_files import read_weights
from pipeline.command import UserError
for path in map(pathlib.Path, sys.argv[1:]):
    message, start = None, time.process_time()
    try:
        read_weights(path)
    except UserError as error:
        message = str(error)
    print(json.dumps([message, time.process_time() - start]))
"""


@pytest.fixture(scope="module")
def explosions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str | None, float]]:
    """Each bomb's file, what was said of it, and the seconds that took, in a process where nobody else leaves garbage."""
    folder = tmp_path_factory.mktemp("bombs")
    paths = [folder / f"{number}.pkl" for number in range(len(BOMBS))]
    for path, content in zip(paths, BOMBS.values(), strict=True):
        path.write_bytes(content)
    child = subprocess.run([sys.executable, "-c", READ_EACH, *map(str, paths)], capture_output=True, text=True, timeout=300)
    assert child.returncode == 0, child.stderr
    answers = map(json.loads, child.stdout.splitlines())
    return {name: (path, *answer) for name, path, answer in zip(BOMBS, paths, answers, strict=True)}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_at_once(name: str, explosions: dict[str, tuple[Path, str | None, float]]) -> None:
    path, message, seconds = explosions[name]
    assert message is not None, "not refused"
    one_line(path, message)
    assert seconds < 2


def float_view(shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0, announced: int | None = None) -> Call:
    return Storage(np.arange(6, dtype=np.float32)).view(shape, strides, offset, announced)


BAD_TENSORS: dict[str, Callable[[], Any]] = {
    "reaches out": lambda: float_view((7,), (1,)),
    "reaches out by its offset": lambda: float_view((3,), (1,), offset=4),
    "reaches out by its strides": lambda: float_view((2, 2), (5, 1)),
    "expanded": lambda: float_view((10**9, 10**9), (0, 0)),
    "negative stride": lambda: float_view((3,), (-1,), offset=5),
    "negative size": lambda: float_view((-3,), (1,)),
    "negative offset": lambda: float_view((3,), (1,), offset=-1),
    "size is text": lambda: float_view(("3",), (1,)),  # type: ignore[arg-type]
    "size is true": lambda: float_view((True,), (1,)),
    "more sizes than strides": lambda: float_view((1, 1), (1,)),
    "100 dimensions": lambda: float_view((1,) * 100, (1,) * 100),
    "larger than the file": lambda: float_view((2**40,), (1,), announced=2**40),
    "storage of text": lambda: Call(Named("torch._utils", "_rebuild_tensor_v2"), "text", 0, (1,), (1,), False, None),
    "storage of no type": lambda: Call(
        Named("torch._utils", "_rebuild_tensor_v2"), Persistent(("storage", 1, "0", "cpu", 1)), 0, (1,), (1,)
    ),
    "module": lambda: Persistent(("module", "a", "b", "c", "d")),
    "no tuple": lambda: Persistent("text"),
    "rebuilt from a function": lambda: Call(Named("torch._utils", "_rebuild_from_type_v2"), Named("os", "system"), 1, 2, 3),
    "reads a file": lambda: Call(Named("torch.storage", "_load_from_bytes"), b"\x80\x02N."),
}


@pytest.mark.parametrize("save", [save_zip, save_legacy])
@pytest.mark.parametrize("name", BAD_TENSORS)
def test_a_bad_tensor_is_refused(name: str, save: Callable[..., None], tmp_path: Path) -> None:
    save(tmp_path / "weights.pth", {"w": BAD_TENSORS[name](), "good": tensor(np.zeros(2, np.float32))})
    assert refused(tmp_path / "weights.pth")


def test_one_storage_shown_over_and_over_is_refused(tmp_path: Path) -> None:
    storage = Storage(np.zeros(10**5, np.float16))  # each view would become a float32 of its own
    save_zip(tmp_path / "weights.pth", {str(k): storage.view((10**5,), (1,)) for k in range(2000)})
    assert "over and over" in refused(tmp_path / "weights.pth")


def test_zip_archives_that_are_none_of_torch(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    state = {"w": tensor(np.zeros(2, np.float32))}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "not one that torch.save wrote" in refused(path)
    save_zip(path, state, compression=zipfile.ZIP_DEFLATED)
    assert "compressed" in refused(path)
    save_zip(path, state, more={"constants.pkl": b"\x80\x02)."})
    assert "TorchScript" in refused(path)
    storage = Storage(np.zeros(2, np.float32))
    save_zip(path, {"w": storage.view((2,), (1,))}, more={f"data/{storage.key}": b"1234"})
    assert "has 4 bytes only" in refused(path)


def test_an_h5_file_that_looks_elsewhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.h5"
    (tmp_path / "secret").write_bytes(b"0" * 64)
    with h5py.File(path, "w") as file:
        file.create_dataset("w", (16,), "f4", external=[(str(tmp_path / "secret"), 0, 64)])
    assert "other files" in refused(path)
    with h5py.File(path, "w") as file:
        file["w"] = h5py.ExternalLink("elsewhere.h5", "/w")
    assert "holds no tensors" in refused(path)
    with h5py.File(path, "w") as file:
        file.create_dataset("w", (10**6, 10**6), "f4", chunks=(1, 1))
    assert "announce more" in refused(path)
    with h5py.File(path, "w") as file:
        file.create_dataset("w", data=np.zeros(10**6, np.float32), compression="gzip")
    assert "announce more" in refused(path)


SAFETENSORS_HEADERS: dict[str, Any] = {
    "no dictionary": [1],
    "no entry": {"a": 1},
    "no offsets": {"a": {"dtype": "F32", "shape": [1]}},
    "behind the end": {"a": {"dtype": "F32", "shape": [5], "data_offsets": [0, 20]}},
    "too large": {"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 8]}},
    "negative": {"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}},
    "no number": {"a": {"dtype": "F32", "shape": [2], "data_offsets": ["0", "8"]}},
    "unknown type": {"a": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}},
    "overlapping": {str(k): {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for k in range(3)},
    "nothing": {},
}


@pytest.mark.parametrize("name", SAFETENSORS_HEADERS)
def test_a_bad_safetensors_header_is_refused(name: str, tmp_path: Path) -> None:
    write_safetensors(tmp_path / "w.safetensors", SAFETENSORS_HEADERS[name], b"\0" * 16)
    assert refused(tmp_path / "w.safetensors")


def test_safetensors_that_nest_or_promise_too_much(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    text = b'{"a":' + b"[" * 100_000
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    refused(path)
    path.write_bytes(struct.pack("<Q", 2**60) + b'{"a": 1}')
    assert "truncated" in refused(path)


def whole_files(folder: Path) -> Iterator[Path]:
    state = {name: tensor(value) for name, value in WEIGHTS.items()}
    save_zip(folder / "zip.pth", state)
    save_legacy(folder / "legacy.pth", state)
    (folder / "zoo.pkl").write_bytes(pickle.dumps({"model": WEIGHTS}, 2))
    write_safetensors(folder / "w.safetensors", {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, b"\0" * 16)
    with h5py.File(folder / "w.h5", "w") as file:
        file["a"] = WEIGHTS["conv.weight"]
    yield from sorted(folder.iterdir())


def test_every_truncation_is_told(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    for whole in whole_files(tmp_path / "whole"):
        content = whole.read_bytes()
        cut = tmp_path / whole.name
        for length in sorted({*range(0, len(content), max(1, len(content) // 60)), len(content) - 1}):
            cut.write_bytes(content[:length])
            if whole.suffix == ".h5" and length > len(content) // 2:
                continue  # the tail of an .h5 file may be padding
            message = refused(cut)
            if length > 16:
                assert re.search("truncated|damaged", message), message


def test_files_that_are_something_else(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    assert "no such file" in refused(path)
    path.write_bytes(b"")
    assert refused(path) == f"{path}: is empty; fetch or copy it again"
    path.write_bytes(b"<!DOCTYPE html><html>")
    assert "<!DOCTYPE" in refused(path)
    path.unlink()
    path.mkdir()
    assert "directory" in refused(path).lower()


@given(data=st.data())
def test_a_flipped_byte_never_gets_past_a_one_line_error(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "flipped"
    if not folder.exists():
        folder.mkdir()
        list(whole_files(folder))
    whole = data.draw(st.sampled_from([folder / name for name in ("zip.pth", "legacy.pth", "zoo.pkl", "w.safetensors")]))
    content = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    changed = folder.parent / f"changed{whole.suffix}"
    changed.write_bytes(bytes(content))
    try:
        for array in read_weights(changed).values():
            np.sum(array)
    except UserError as error:
        assert "\n" not in str(error)
