"""Reads what `torch.save` wrote, without torch: the zip archive of today, and the sequence of pickles from before 1.6.

In both, a pickle describes tensors as views (offset, sizes, strides) of storages, and names each storage by a persistent id:

    zip      <root>/data.pkl, <root>/byteorder, and one stored (never compressed) entry <root>/data/<key> a storage
    legacy   pickles: magic number, protocol, byte order, the description, the storages' keys; then for each storage, in the
             order of the keys, its number of elements (int64) and its elements

Source of both: torch/serialization.py, `_save` and `_legacy_save`.
"""

from __future__ import annotations

import dataclasses
import io
import math
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from model.weights.pickle_reader import Known, RefusedError, checked_shape, checked_sizes, known, load

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
# Tied weights are views of one storage; a file that shows its bytes more often than so is made to fill the memory.
MOST_TIMES_SHARED = 4

BFLOAT16 = np.dtype("V2")  # stands for the type that NumPy lacks
_BITS = np.dtype("u2")
_STORAGES: Mapping[str, np.dtype[Any]] = {
    "DoubleStorage": np.dtype("f8"),
    "FloatStorage": np.dtype("f4"),
    "HalfStorage": np.dtype("f2"),
    "BFloat16Storage": BFLOAT16,
    "LongStorage": np.dtype("i8"),
    "IntStorage": np.dtype("i4"),
    "ShortStorage": np.dtype("i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


@dataclasses.dataclass(frozen=True)
class _Storage:
    """Elements `start` … `start + count` of the storage `key`, which has `whole` of them."""

    key: str
    dtype: np.dtype[Any]
    whole: int
    start: int
    count: int


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A view of a storage, whose bytes are looked at only when all is described."""

    storage: _Storage
    offset: int  # elements, as the strides
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


Values = Callable[[Sequence[Tensor]], list[NDArray[Any]]]


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    if not isinstance(storage, _Storage):
        raise RefusedError("damaged: a tensor without a storage")
    (start,) = checked_sizes((offset,))
    sizes, steps = checked_shape(shape), checked_sizes(strides)
    if len(sizes) != len(steps):
        raise RefusedError(f"damaged: a tensor with {len(sizes)} sizes and {len(steps)} strides")
    # A stride along which there is no second element may be anything, also more bytes than NumPy can count.
    steps = tuple(step if size > 1 and 0 not in sizes else 0 for size, step in zip(sizes, steps, strict=True))
    tensor = Tensor(storage, 0 if 0 in sizes else start, sizes, steps)
    last = start + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))
    if tensor.elements and (last >= storage.count or tensor.elements > storage.count):
        raise RefusedError(
            f"damaged: a tensor of {tensor.elements} elements reaches out of its storage, which has {storage.count}"
        )
    return tensor


def _parameter(data: Any, *_: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise RefusedError("damaged: a parameter without a tensor")
    return data


def _size(sizes: Any = ()) -> tuple[int, ...]:
    return checked_sizes(sizes)


_NAMES: Mapping[str, Known] = {
    **{f"torch.{name}": Known(f"torch.{name}", value=dtype) for name, dtype in _STORAGES.items()},
    **known("torch._utils._rebuild_tensor", _tensor),
    **known("torch._utils._rebuild_tensor_v2", _tensor),
    **known("torch._utils._rebuild_parameter", _parameter),
    **known("torch.Size", _size),
}


class _Storages:
    """The storages that a description refers to, by key: called with each persistent id."""

    def __init__(self) -> None:
        self.by_key: dict[str, _Storage] = {}

    def __call__(self, identity: Any) -> _Storage:
        """The storage of a persistent id ("storage", type, key, place, elements[, view])."""
        if type(identity) is not tuple or len(identity) not in (5, 6) or identity[0] != "storage":
            raise RefusedError("refused: it refers to something that is not a storage; save the state_dict alone")
        _, kind, key, _, whole, *view = identity
        if not isinstance(kind, Known) or not isinstance(kind.value, np.dtype) or not isinstance(key, str):
            raise RefusedError("damaged: a storage of no known type")
        start, count = (view[0][1], view[0][2]) if view and view[0] is not None else (0, whole)
        whole, start, count = checked_sizes((whole, start, count))
        if start + count > whole:
            raise RefusedError("damaged: a view reaches out of its storage")
        storage = _Storage(key, kind.value, whole, start, count)
        known_before = self.by_key.setdefault(key, storage)
        if (known_before.whole, known_before.dtype) != (whole, kind.value):
            raise RefusedError("damaged: one storage is described in two ways")
        return storage


def read_zip(path: Path) -> tuple[Any, Values]:
    """What a zip archive of `torch.save` describes, with `Tensor` where tensors are, and the function that gives their values.

    Raises:
      RefusedError: another archive, truncated, damaged, or holding what is no array.
    """
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {info.filename: info for info in archive.infolist()}
            roots = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
            if len(roots) != 1:
                raise RefusedError("a zip archive, but not one that torch.save wrote")
            (root,) = roots
            if f"{root}constants.pkl" in entries:
                raise RefusedError("a TorchScript archive; save the model's state_dict instead")
            if any(info.compress_type != zipfile.ZIP_STORED for info in entries.values()):
                raise RefusedError("has compressed entries, which torch.save never writes")
            if sum(info.file_size for info in entries.values()) > size:
                raise RefusedError("damaged: its entries announce more bytes than the file has")
            big = f"{root}byteorder" in entries and archive.read(f"{root}byteorder") == b"big"
            storages = _Storages()
            described = load(io.BytesIO(archive.read(f"{root}data.pkl")), _NAMES, storages)
            missing = [key for key in storages.by_key if f"{root}data/{key}" not in entries]
            if missing:
                raise RefusedError(f"damaged: the storage {missing[0][:40]!a} is missing")
            contents = {key: memoryview(archive.read(f"{root}data/{key}")) for key in storages.by_key}
    except zipfile.BadZipFile as error:
        raise RefusedError(f"truncated or damaged zip archive ({str(error)[:100]})") from None
    except RefusedError:
        raise
    except (NotImplementedError, EOFError, RuntimeError, ValueError, struct.error) as error:  # encrypted, split, cut, no UTF-8
        raise RefusedError(f"not an archive that torch.save writes ({str(error)[:100]})") from None
    for key, content in contents.items():
        storage = storages.by_key[key]
        if len(content) < storage.whole * storage.dtype.itemsize:
            raise RefusedError(f"damaged: a storage of {storage.whole} elements has {len(content)} bytes only")
    return described, _values_of(contents, ">" if big else "<")


def is_legacy(content: bytes) -> bool:
    """Whether a pickle begins as `read_legacy` wants it: with the magic number, in an instruction of ten bytes."""
    return LEGACY_MAGIC.to_bytes(10, "little") in content[:20]


def read_legacy(content: bytes) -> tuple[Any, Values]:
    """As `read_zip`, of the whole content of a file in the format before torch 1.6, which begins with the magic number."""
    stream = io.BytesIO(content)
    if load(stream) != LEGACY_MAGIC or load(stream) != LEGACY_PROTOCOL:
        raise RefusedError("not in torch's format of protocol 1001")
    machine = load(stream)
    big = isinstance(machine, dict) and machine.get("little_endian") is False
    storages = _Storages()
    described = load(stream, _NAMES, storages)
    keys = load(stream)
    if type(keys) is not list or any(not isinstance(key, str) for key in keys) or set(keys) != set(storages.by_key):
        raise RefusedError("damaged: the storages are not those that its tensors refer to")
    contents: dict[str, memoryview] = {}
    position = stream.tell()
    for key in keys:
        storage = storages.by_key[key]
        start, length = position + 8, storage.whole * storage.dtype.itemsize
        position = start + length
        if position > len(content):
            raise RefusedError(f"truncated: a storage of {length} bytes ends behind the end of the file")
        if int.from_bytes(content[start - 8 : start], "big" if big else "little") != storage.whole:
            raise RefusedError("damaged: a storage's size is not what its tensors say")
        contents[key] = memoryview(content)[start:position]
    return described, _values_of(contents, ">" if big else "<")


def _values_of(contents: Mapping[str, memoryview], order: Literal["<", ">"]) -> Values:
    """The function that gives the arrays of tensors, bfloat16 as float32, and one array for equal tensors."""

    def values(tensors: Sequence[Tensor]) -> list[NDArray[Any]]:
        shown = sum(tensor.elements * tensor.storage.dtype.itemsize for tensor in tensors)
        if shown > MOST_TIMES_SHARED * sum(len(content) for content in contents.values()):
            raise RefusedError("refused: its tensors show the same bytes over and over")
        arrays = {tensor: value(tensor) for tensor in dict.fromkeys(tensors)}
        return [arrays[tensor] for tensor in tensors]

    def value(tensor: Tensor) -> NDArray[Any]:
        storage = tensor.storage
        if not tensor.elements:
            return np.zeros(tensor.shape, np.float32)
        dtype = _BITS if storage.dtype == BFLOAT16 else storage.dtype
        flat = np.frombuffer(contents[storage.key], dtype.newbyteorder(order), storage.count, storage.start * dtype.itemsize)
        strides = tuple(stride * dtype.itemsize for stride in tensor.strides)
        view = as_strided(flat[tensor.offset :], tensor.shape, strides, writeable=False)
        return from_bfloat16(view) if storage.dtype == BFLOAT16 else view

    return values


def from_bfloat16(bits: NDArray[Any]) -> NDArray[np.float32]:
    """float32 of bfloat16's 16 bits (any unsigned 16-bit array): they are a float32's upper half."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
