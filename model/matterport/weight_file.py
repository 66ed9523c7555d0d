"""Reads the old network's `.h5` files, one tensor at a time, by the names of the groups; Keras is not asked.

A file of weights has a group for each layer; the file of a whole model has the same groups below `model_weights`. Groups
without data sets belong to layers without weights, whose names are numbered at random. Nothing in a file can lead to another
file, and no attribute is read: Keras' attributes may hold Python's objects.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

from model.matterport.layout import BATCH_NORM, RPN_GROUP, Shape
from model.weights.h5_files import try_in_a_child
from model.weights.pickle_reader import RefusedError
from model.weights.weight_files import LARGEST_FILE
from pipeline.command import UserError
from pipeline.files import open_regular

SIGNATURE = b"\x89HDF\r\n\x1a\n"
WHOLE_MODEL = "model_weights"
# Where Keras' optimizers leave their state beside a whole model's weights.
OTHER_STATE = ("optimizer_weights",)
# Keras numbers a layer's scope anew where a program builds the network twice: "rpn_conv_shared_1/kernel:0".
_DATA_SET = re.compile(r"(?P<layer>[^/]+?)(?:_\d+)?/(?P<variable>kernel|bias|" + "|".join(BATCH_NORM) + r"):0")
LARGEST = 2**33  # values of one tensor; the full-size network has 12.8 million in its largest


@dataclasses.dataclass(frozen=True)
class WeightFile:
    """An open file.

    Attributes:
      shapes: of the tensors, by the names of `layout`.
      left_over: paths within the file that stand for no tensor of a network.
    """

    shapes: dict[str, Shape]
    left_over: tuple[str, ...]
    _data_sets: dict[str, h5py.Dataset]

    def read(self, name: str) -> npt.NDArray[np.float32]:
        """One tensor. Raises: RefusedError if it cannot be read, or holds what is no finite number."""
        try:
            value = np.asarray(self._data_sets[name][()], np.float32)
        except (OSError, RuntimeError, ValueError) as error:
            raise RefusedError(f"truncated or damaged: {name} cannot be read ({_first_line(error)})") from None
        if not np.isfinite(value).all():
            raise RefusedError(f"its {name} has values that are not finite: a training that went wrong?")
        return value


@contextlib.contextmanager
def open_weights(path: Path) -> Iterator[WeightFile]:
    """Opens a file and looks at everything in it, without reading a tensor.

    Raises:
      UserError: no such file, no HDF5 file, truncated, damaged; or one that leads to other files, holds objects, or announces
        more than it has. Whatever is refused while the file is open is refused with its path.
    """
    try:
        with open_regular(path, LARGEST_FILE) as file:
            head = file.read(len(SIGNATURE))
        if not head:
            raise RefusedError("is empty; fetch or copy it again")
        if head != SIGNATURE:
            raise RefusedError(f"not an .h5 file: it begins with {head!a}")
        try_in_a_child(path, _read_all)
        with _opened(path) as content:
            yield _looked_at(content, path.stat().st_size)
    except RefusedError as error:
        raise UserError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise UserError(f"{path}: no such file of weights") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or _first_line(error)})") from None


def _read_all(path: Path) -> None:
    """Looks at everything in a file, and reads every tensor: what a child process tries first (`h5_files.py`)."""
    with _opened(path) as content:
        for data_set in _looked_at(content, path.stat().st_size)._data_sets.values():
            data_set[()]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    try:
        file = h5py.File(path, "r")
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise RefusedError(f"truncated or damaged .h5 file ({_first_line(error)})") from None
    try:
        yield file
    finally:
        file.close()


def _looked_at(file: h5py.File, size: int) -> WeightFile:
    data_sets: dict[str, h5py.Dataset] = {}
    paths: dict[str, str] = {}
    left_over: list[str] = []
    announced = 0
    for path, data_set in _data_sets(file):
        _check(path, data_set)
        announced += data_set.nbytes
        if announced > size or data_set.id.get_storage_size() < data_set.nbytes:
            raise RefusedError(
                f"its data sets announce more bytes than it has: {_told(path)} is {data_set.shape} of {data_set.dtype}"
            )
        name = _name(path)
        if name is None:
            left_over.append(path)
        elif name in paths:
            raise RefusedError(f"{_told(paths[name])} and {_told(path)} both stand for {name}: which of them is meant?")
        else:
            data_sets[name], paths[name] = data_set, path
    if not data_sets:
        raise RefusedError("holds no layer's weights by Keras' names, such as conv1/conv1/kernel:0")
    return WeightFile({name: data_set.shape for name, data_set in data_sets.items()}, tuple(left_over), data_sets)


def _data_sets(file: h5py.File) -> Iterator[tuple[str, h5py.Dataset]]:
    """Every data set with its path. Groups that contain themselves are entered once; links that lead elsewhere are refused."""
    entered = set()
    waiting: list[tuple[str, h5py.Group]] = [("", file)]
    while waiting:
        prefix, group = waiting.pop()
        place = h5py.h5o.get_info(group.id).addr
        if place in entered:
            continue
        entered.add(place)
        try:
            names = list(group)
            links = [group.get(name, getlink=True) for name in names]
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise RefusedError(
                f"truncated or damaged: {_told(prefix) or '/'} cannot be listed ({_first_line(error)})"
            ) from None
        for name, link in zip(names, links, strict=True):
            path = f"{prefix}/{name}" if prefix else name
            if not isinstance(link, h5py.HardLink):
                kind = "another file" if isinstance(link, h5py.ExternalLink) else "another place"
                raise RefusedError(f"{_told(path)} is a link to {kind}; weights that Keras saved hold none")
            try:
                item = group[name]
            except (OSError, RuntimeError, ValueError, KeyError) as error:
                raise RefusedError(f"truncated or damaged: {_told(path)} cannot be read ({_first_line(error)})") from None
            if isinstance(item, h5py.Dataset):
                yield path, item
            elif isinstance(item, h5py.Group):
                waiting.append((path, item))


def _check(path: str, data_set: h5py.Dataset) -> None:
    if data_set.is_virtual or data_set.external:
        raise RefusedError(f"{_told(path)} takes its data from other files; weights that Keras saved hold them")
    if data_set.dtype.kind not in "fiub":
        raise RefusedError(f"{_told(path)} holds {data_set.dtype}, not numbers")
    if data_set.shape is None or data_set.size > LARGEST:
        raise RefusedError(f"{_told(path)} has the shape {data_set.shape}: no tensor of this network")


def _name(path: str) -> str | None:
    """The tensor that a data set stands for, by its layer's group; None for what is no layer's."""
    parts = path.removeprefix(f"{WHOLE_MODEL}/").split("/")
    if len(parts) < 3 or parts[0] in OTHER_STATE:
        return None
    match = _DATA_SET.fullmatch("/".join(parts[-2:]))
    if match is None:
        return None
    layer = match["layer"] if parts[0] == RPN_GROUP else parts[0]
    return f"{layer}/{match['variable']}"


def _told(path: str) -> str:
    """A path of the file for a message: it may hold anything."""
    return ascii(path)[1:-1][:100]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:100]
