"""Reads files of weights: torch's .pth, Detectron2's .pkl, .safetensors, and Keras' .h5. Needs neither torch nor Detectron2.

No file can make this program run anything (`pickle_reader.py`), or take many times its size in memory. The content tells the
kind of a file, not its name.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray

from model.weights import pickle_reader, torch_files
from model.weights.h5_files import read_h5
from model.weights.pickle_reader import RefusedError
from pipeline.command import UserError
from pipeline.files import open_regular

# Under which of its names a training checkpoint or a file of a model zoo has the tensors.
WRAPPERS = ("model", "state_dict", "model_state_dict", "blobs")
_SAFETENSORS = {
    "F64": "f8", "F32": "f4", "F16": "f2", "BF16": "u2",
    "I64": "i8", "I32": "i4", "I16": "i2", "I8": "i1", "U64": "u8", "U32": "u4", "U16": "u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip
LARGEST_FILE = 2**33  # bytes; a ResNet-101 with its optimizer has half a gigabyte, and a sparse file can have any size
# float16 takes twice its bytes as float32, and tied weights are views of the same bytes.
MOST_TIMES_LARGER = 2 * torch_files.MOST_TIMES_SHARED


def read_weights(path: str | Path) -> dict[str, NDArray[Any]]:
    """The tensors of a file by their names.

    Of a training checkpoint these are the model's alone. Names are as the file has them, for an .h5 file the path of the data
    set. Every floating type becomes float32; integers stay. Arrays may be read-only, and views of one another.

    Raises:
      UserError: no such file, of no known kind, truncated, damaged, or holding anything but arrays.
    """
    path = Path(path)
    try:
        arrays = _read(path)
        _check_names(arrays)
        return _floats_as_float32(arrays, path.stat().st_size)
    except RefusedError as error:
        raise UserError(f"{path}: {error}") from None
    except MemoryError:
        raise UserError(f"{path}: reading it takes more memory than this process can have") from None
    except FileNotFoundError:
        raise UserError(f"{path}: no such file of weights") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or str(error)[:100]})") from None


def _read(path: Path) -> dict[str, NDArray[Any]]:
    if path.is_dir():
        raise RefusedError("is a directory, not a file of weights")
    with open_regular(path, LARGEST_FILE) as file:
        head = file.read(16)
    if not head:
        raise RefusedError("is empty; fetch or copy it again")
    if head.startswith(b"PK\x03\x04"):
        described, values = torch_files.read_zip(path)
        return _arrays(described, values)
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return read_h5(path)
    if head[8:9] == b"{":
        return _read_safetensors(path.read_bytes())
    if head[:1] == b"\x80":
        content = path.read_bytes()
        if torch_files.is_legacy(content):
            described, values = torch_files.read_legacy(content)
            return _arrays(described, values)
        return _arrays(pickle_reader.load(io.BytesIO(content)), None)
    raise RefusedError(f"neither .pth, .pkl, .safetensors nor .h5: it begins with {head!a}")


def _arrays(described: Any, values: torch_files.Values | None) -> dict[str, NDArray[Any]]:
    """The arrays of a state dict, or of the one within a checkpoint; what is no array (an epoch, an author) is left aside."""
    if not isinstance(described, dict):
        raise RefusedError(f"holds a {type(described).__name__}, not a dictionary of tensors")
    wrapped = [name for name in WRAPPERS if isinstance(described.get(name), dict)]
    state = described[wrapped[0]] if wrapped else described
    arrays = {}
    for name, value in state.items():
        if isinstance(value, pickle_reader.Array) and value.value is not None:
            arrays[str(name)] = value.value
    tensors = {str(name): value for name, value in state.items() if isinstance(value, torch_files.Tensor)}
    if values is not None:
        arrays |= zip(tensors, values(list(tensors.values())), strict=True)
    if not arrays:
        raise RefusedError("holds no tensors by name")
    return arrays


def _floats_as_float32(arrays: Mapping[str, NDArray[Any]], size: int) -> dict[str, NDArray[Any]]:
    """Converts each array once, however many names it has. Raises: RefusedError if they become many times the file's `size`."""
    unique = {id(array): array for array in arrays.values()}
    total = sum(array.size * 4 if array.dtype.kind == "f" else array.nbytes for array in unique.values())
    if total > MOST_TIMES_LARGER * size + 2**20:
        raise RefusedError(f"refused: its tensors would take {total:,} bytes, many times its size")
    converted = {
        key: array.astype(np.float32, copy=False) if array.dtype.kind == "f" else array for key, array in unique.items()
    }
    return {name: converted[id(array)] for name, array in arrays.items()}


def _check_names(arrays: Mapping[str, NDArray[Any]]) -> None:
    for name in arrays:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise RefusedError(f"damaged: a tensor's name, {name[:40]!a}, is no text in UTF-8") from None


def _read_safetensors(content: bytes) -> dict[str, NDArray[Any]]:
    arrays = {}
    try:
        entries: Any = safetensors.deserialize(content)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        raise RefusedError(f"truncated or damaged .safetensors file ({' '.join(str(error).split())[:100]})") from None
    for name, entry in entries:
        if entry["dtype"] not in _SAFETENSORS:
            raise RefusedError(f"has a tensor of type {str(entry['dtype'])[:20]!a}, which is not read")
        dtype = np.dtype(_SAFETENSORS[entry["dtype"]]).newbyteorder("<")
        array = np.frombuffer(entry["data"], dtype).reshape(pickle_reader.checked_shape(entry["shape"]))
        arrays[name] = torch_files.from_bfloat16(array) if entry["dtype"] == "BF16" else array
    if not arrays:
        raise RefusedError("holds no tensors")
    return arrays
