"""Reads files of weights: torch's .pth, Detectron2's .pkl, .safetensors, and Keras' .h5. Needs neither torch nor Detectron2.

No file can make this program run anything: see `pickle_reader.py`. The kind is told by the content, not by the name.
"""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from model.weights import pickle_reader, torch_files
from model.weights.pickle_reader import RefusedError
from pipeline.command import UserError

# Under which of its names a training checkpoint or a file of a model zoo has the tensors.
WRAPPERS = ("model", "state_dict", "model_state_dict", "blobs")
_SAFETENSORS = {
    "F64": "f8", "F32": "f4", "F16": "f2", "BF16": "u2",
    "I64": "i8", "I32": "i4", "I16": "i2", "I8": "i1", "U64": "u8", "U32": "u4", "U16": "u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip
_SAFETENSORS_HEADER = 100_000_000  # bytes at most, as the format has it


def read_weights(path: str | Path) -> dict[str, NDArray[Any]]:
    """The tensors of a file by their names.

    Of a training checkpoint these are the model's alone. Names are as the file has them, for an .h5 file the path of the data
    set. Every floating type becomes float32; integers stay. Arrays may be read-only, and views of one another.

    Raises:
      UserError: no such file, of no known kind, truncated, damaged, or holding anything but arrays.
    """
    path = Path(path)
    try:
        return {name: _float32(array) for name, array in _read(path).items()}
    except RefusedError as error:
        raise UserError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise UserError(f"{path}: no such file of weights") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or str(error)[:100]})") from None


def _read(path: Path) -> dict[str, NDArray[Any]]:
    with path.open("rb") as file:
        head = file.read(16)
    if head.startswith(b"PK\x03\x04"):
        described, values = torch_files.read_zip(path)
        return _arrays(described, values)
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return _read_h5(path)
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
        if isinstance(value, torch_files.Tensor) and values is not None:
            arrays[str(name)] = values(value)
        elif isinstance(value, pickle_reader.Array) and value.value is not None:
            arrays[str(name)] = value.value
    if not arrays:
        raise RefusedError("holds no tensors by name")
    return arrays


def _float32(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype.kind == "f":
        return array.astype(np.float32, copy=False)
    return array


def _read_safetensors(content: bytes) -> dict[str, NDArray[Any]]:
    """The format: the header's length (8 bytes, little end first), the header in JSON, and the tensors' bytes.

    Source: github.com/huggingface/safetensors, README.
    """
    length = int.from_bytes(content[:8], "little")
    if length > min(_SAFETENSORS_HEADER, len(content) - 8):
        raise RefusedError(f"truncated: its header should have {length} bytes")
    data = memoryview(content)[8 + length :]
    try:
        header = json.loads(content[8 : 8 + length])
        arrays, used = {}, 0
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            start, end = entry["data_offsets"]
            shape = pickle_reader.checked_sizes(entry["shape"])
            if entry["dtype"] not in _SAFETENSORS:
                raise RefusedError(f"has a tensor of type {str(entry['dtype'])[:20]!a}, which is not read")
            dtype = np.dtype(_SAFETENSORS[entry["dtype"]]).newbyteorder("<")
            if end > len(data):
                raise RefusedError(f"truncated: a tensor ends at byte {end} of {len(data)}")
            if not 0 <= start <= end or end - start != math.prod(shape) * dtype.itemsize:
                raise RefusedError("damaged: a tensor's size does not fit its shape")
            used += end - start
            if used > len(data):
                raise RefusedError("damaged: its tensors overlap")
            array = np.frombuffer(data[start:end], dtype).reshape(shape)
            arrays[name] = torch_files.from_bfloat16(array) if entry["dtype"] == "BF16" else array
    except RefusedError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise RefusedError(f"damaged safetensors header ({str(error)[:100]})") from None
    if not arrays:
        raise RefusedError("holds no tensors")
    return arrays


def _read_h5(path: Path) -> dict[str, NDArray[Any]]:
    """Every data set, by its path within the file; other files that it may point to are not followed.

    In Keras 3's .weights.h5, groups are numbered and carry their layer's name: "layers/conv2d_3/vars/0" with the name
    "conv2_block1_1_conv" becomes "conv2_block1_1_conv/vars/0".
    """
    size = path.stat().st_size
    arrays: dict[str, NDArray[Any]] = {}
    total = 0

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:  # by hard links only, and each thing once
        nonlocal total
        if not isinstance(item, h5py.Dataset) or item.dtype.kind not in "fiub":
            return
        if item.is_virtual or item.external:
            raise RefusedError("refused: it takes its data from other files")
        total += item.nbytes
        if total > size or item.id.get_storage_size() < item.nbytes:
            raise RefusedError("refused: its data sets announce more bytes than the file has")
        layer = item.parent.attrs.get("name")
        arrays[f"{layer}/vars/{name.rpartition('/')[2]}" if isinstance(layer, str) else name] = item[()]

    try:
        with h5py.File(path, "r") as file:
            file.visititems(visit)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        if isinstance(error, RefusedError):
            raise
        raise RefusedError(f"truncated or damaged .h5 file ({str(error)[:100]})") from None
    if not arrays:
        raise RefusedError("holds no tensors")
    return arrays
