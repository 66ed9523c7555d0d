"""Writes files as `torch.save` does, both its zip archive and the older sequence of pickles, without torch."""

from __future__ import annotations

import io
import itertools
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.weights.torch_files import LEGACY_MAGIC, LEGACY_PROTOCOL

STORAGES = {"<f8": "Double", "<f4": "Float", "<f2": "Half", "<i8": "Long", "<i4": "Int", "|b1": "Bool", "|u1": "Byte"}


class Named:
    """Pickled as the bare name of a function or class, which need not exist here."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class Call:
    """Pickled as the call of a named function."""

    def __init__(self, function: Named, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments


class Persistent:
    """Pickled as a persistent id."""

    def __init__(self, identity: Any) -> None:
        self.identity = identity


class Storage:
    """Elements that tensors show parts of. `kind` names torch's storage type where NumPy has no such dtype."""

    keys = itertools.count()

    def __init__(self, elements: NDArray[Any], kind: str | None = None) -> None:
        self.elements, self.key = elements, str(next(self.keys))
        self.kind = kind or STORAGES[elements.dtype.str]

    def view(self, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0, announced: int | None = None) -> Call:
        count = len(self.elements) if announced is None else announced
        identity = ("storage", Named("torch", f"{self.kind}Storage"), self.key, "cpu", count)
        storage = StorageId(self, identity)
        return Call(Named("torch._utils", "_rebuild_tensor_v2"), storage, offset, shape, strides, False, OrderedDict())


class StorageId(Persistent):
    def __init__(self, storage: Storage, identity: Any) -> None:
        super().__init__(identity)
        self.storage = storage


def tensor(values: Any) -> Call:
    """A contiguous tensor with a storage of its own."""
    array = np.asarray(values)
    strides = tuple(step // array.itemsize for step in np.ascontiguousarray(array).reshape(array.shape).strides)
    return Storage(array.ravel()).view(array.shape, strides)


_PythonPickler: Any = pickle._Pickler  # the one in C cannot be told to write names of what does not exist


class _Pickler(_PythonPickler):
    def __init__(self, file: io.BytesIO, legacy: bool) -> None:
        super().__init__(file, protocol=2)
        self.legacy, self.storages = legacy, dict[str, Storage]()

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, Named):
            self.write(b"c" + f"{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Call):
            self.save(obj.function)
            self.save(tuple(obj.arguments))
            self.write(b"R")
        elif isinstance(obj, Persistent):
            view = (None,) if self.legacy and isinstance(obj, StorageId) else ()
            if isinstance(obj, StorageId):
                self.storages[obj.storage.key] = obj.storage
            self.save((*obj.identity, *view) if isinstance(obj.identity, tuple) else obj.identity)
            self.write(b"Q")
        else:
            super().save(obj, save_persistent_id)


def pickled(value: Any, *, legacy: bool = False) -> tuple[bytes, dict[str, Storage]]:
    """A pickle of `value` of protocol 2, and the storages in it."""
    stream = io.BytesIO()
    pickler = _Pickler(stream, legacy)
    pickler.dump(value)
    return stream.getvalue(), pickler.storages


def save_zip(path: Path, value: Any, *, more: Mapping[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED) -> None:
    """As torch.save since 1.6. `more`: further entries, or replacements."""
    description, storages = pickled(value)
    entries = {"data.pkl": description, "byteorder": b"little", "version": b"3\n"}
    entries |= {f"data/{key}": storage.elements.tobytes() for key, storage in storages.items()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in (entries | dict(more or {})).items():
            archive.writestr(f"archive/{name}", content)


def save_legacy(path: Path, value: Any) -> None:
    """As torch.save before 1.6, and since with _use_new_zipfile_serialization=False."""
    description, storages = pickled(value, legacy=True)
    system = {"protocol_version": LEGACY_PROTOCOL, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    with path.open("wb") as file:
        for part in (LEGACY_MAGIC, LEGACY_PROTOCOL, system):
            pickle.dump(part, file, protocol=2)
        file.write(description)
        pickle.dump(sorted(storages), file, protocol=2)
        for key in sorted(storages):
            elements = storages[key].elements
            file.write(len(elements).to_bytes(8, "little") + elements.tobytes())
