"""Reads pickles of arrays, numbers, text and containers of these, and refuses all others; nothing in them is run.

The instructions are followed by the standard library's unpickler. It finds functions in a table of our own, so that no import,
no attribute and no method of any object can be reached.

This is the library's unpickler in Python, `pickle._Unpickler`, which joblib extends in the same way, and not the one in C: the
latter hashes every key of a dictionary (a tuple of itself twice, 40 levels deep, takes for ever), allocates
what a file announces before it reads it (34 GB for one index of the memo), and lets a file call and change what it has made.
Here an instruction that arrays do not need is refused, keys are checked before they are hashed, and what calls are given is
counted.
"""

from __future__ import annotations

import dataclasses
import io
import math
import pickle
import pickletools
import re
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_INT64 = 2**63
MAX_INSTRUCTIONS = 1_000_000  # a ResNet-101 with its optimizer has some 20,000; bounds the time that a hostile file can take


class RefusedError(ValueError):
    """What a file holds cannot be read. The message says why, and does not name the file."""


@dataclasses.dataclass(frozen=True)
class Known:
    """What stands for a name in a pickle: `call` for functions and classes that may be called, `value` for other facts."""

    name: str
    call: Callable[..., Any] | None = None
    value: Any = None


@dataclasses.dataclass
class Dtype:
    """A NumPy type of numbers: its byte order comes in an instruction after its making."""

    dtype: np.dtype[Any]

    def set_state(self, state: Any) -> None:
        order = state[1]
        if order in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(order)


@dataclasses.dataclass
class Array:
    """A NumPy array: a pickle makes an empty one and fills it by a later instruction."""

    value: NDArray[Any] | None = None

    def set_state(self, state: Any) -> None:
        shape, dtype, fortran, data = state[-4:]  # before them a version, in all but the oldest files
        self.value = from_bytes(data, dtype, shape, "F" if fortran else "C")


def from_bytes(data: Any, dtype: Any, shape: Any, order: str = "C") -> NDArray[Any]:
    """An array over `data`, which must be as long as `dtype` and `shape` say. Raises: RefusedError."""
    if isinstance(data, list) or not isinstance(dtype, Dtype):
        raise RefusedError("holds an array of Python objects, not of numbers")
    raw = as_bytes(data)
    sizes = checked_shape(shape)
    if math.prod(sizes) * dtype.dtype.itemsize != len(raw):
        raise RefusedError(f"an array's size does not fit its {len(raw)} bytes: damaged")
    return np.frombuffer(raw, dtype.dtype).reshape(sizes, order="F" if order == "F" else "C")


def as_bytes(data: Any) -> bytes | bytearray:
    """Bytes, also those that Python 2 wrote, whose text was bytes."""
    if isinstance(data, str):
        return data.encode("latin1")
    if isinstance(data, bytes | bytearray):
        return data
    raise RefusedError("an array without its bytes: damaged")


def checked_sizes(sizes: Any) -> tuple[int, ...]:
    """Sizes, offsets or strides. Raises: RefusedError if `sizes` is not a short tuple of integers from 0 to below 2^63."""
    if not isinstance(sizes, tuple | list) or len(sizes) > 32 or not all(type(n) is int and 0 <= n < _INT64 for n in sizes):
        raise RefusedError("an array's shape is not a tuple of sizes: damaged")
    return tuple(sizes)


def checked_shape(shape: Any) -> tuple[int, ...]:
    """A shape of which NumPy can count the bytes, also if one of its sizes is 0. Raises: RefusedError."""
    sizes = checked_sizes(shape)
    if math.prod(max(size, 1) for size in sizes) >= _INT64 // 16:
        raise RefusedError("an array's shape has more elements than a memory can have: damaged")
    return sizes


def _dtype(text: Any, *_: Any) -> Dtype:
    if not isinstance(text, str) or not re.fullmatch(r"[<>=|]?(b1|[iuf][1248])", text):
        raise RefusedError("holds an array of Python objects or records, not of numbers")
    return Dtype(np.dtype(text))


def _encode(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):  # how protocol 2 writes bytes
        raise RefusedError("refused: it calls _codecs.encode with other arguments than arrays do")
    return text.encode("latin1")


def _empty_bytes(*arguments: Any) -> bytes:
    if arguments:
        raise RefusedError("refused: it calls bytes with arguments, which arrays do not")
    return b""


def _ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
    if not isinstance(pairs, list | tuple) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise RefusedError("refused: it calls collections.OrderedDict with something other than a list of pairs")
    return {_key(key): value for key, value in pairs}


def _key(key: Any) -> Any:
    # A tuple's hash is that of all that hangs on it: nested in itself, twice a level, it would take for ever. So would that of
    # an integer of a hundred megabytes, again and again.
    if not isinstance(key, str | int | float | None) or (isinstance(key, int) and not -_INT64 <= key < _INT64):
        raise RefusedError(f"a dictionary has a {type(key).__name__} for a key")
    return key


def known(name: str, call: Callable[..., Any] | None = None, value: Any = None) -> dict[str, Known]:
    """One entry of a table of names."""
    return {name: Known(name, call, value)}


_NUMPY: Mapping[str, Known] = {
    **known("collections.OrderedDict", _ordered_dict),
    **known("_codecs.encode", _encode),
    **known("__builtin__.bytes", _empty_bytes),
    **known("builtins.bytes", _empty_bytes),
    **known("numpy.ndarray"),
    **known("numpy.dtype", _dtype),
    **{
        name: Known(name, call)
        for core in ("numpy.core", "numpy._core")  # before and since NumPy 2
        for name, call in (
            (f"{core}.multiarray._reconstruct", lambda *_: Array()),
            (f"{core}.multiarray.scalar", lambda dtype, data: Array(from_bytes(data, dtype, ()))),
            (f"{core}.numeric._frombuffer", lambda data, dtype, shape, order: Array(from_bytes(data, dtype, shape, order))),
        )
    },
}


def load(
    stream: io.BytesIO,
    names: Mapping[str, Known] | None = None,
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """Reads one pickle and leaves `stream` behind it.

    Args:
      stream: the file.
      names: what may be named besides NumPy's arrays.
      persistent: makes the value of a persistent id, of which by default none is known.

    Returns:
      None, numbers, text, bytes, lists, tuples, dictionaries, `Array`, and what `names` and `persistent` make.

    Raises:
      RefusedError: damaged, truncated, or holding anything else.
    """
    try:
        return _ArrayUnpickler(stream, {**_NUMPY, **(names or {})}, persistent).load()
    except RefusedError:
        raise
    except EOFError:
        raise RefusedError("truncated pickle") from None
    except (
        pickle.UnpicklingError, struct.error, ValueError, TypeError, LookupError, AttributeError, OverflowError,
    ) as error:  # fmt: skip
        raise RefusedError(f"damaged or truncated pickle ({str(error)[:100]})") from None


# Instructions of arrays and of containers. Those that make objects (INST, OBJ, NEWOBJ, NEWOBJ_EX), call other extensions (EXT1,
# EXT2, EXT4), look elsewhere (PERSID, NEXT_BUFFER) or make sets are left out, and so are those that later protocols bring.
_ALLOWED = """
    PROTO FRAME STOP MARK POP POP_MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT
    STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8
    BYTEARRAY8 PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET EMPTY_TUPLE EMPTY_LIST EMPTY_DICT TUPLE1 TUPLE2 TUPLE3
    TUPLE LIST APPEND APPENDS DICT SETITEM SETITEMS GLOBAL STACK_GLOBAL REDUCE BUILD BINPERSID
"""
_CODES = {instruction.name: ord(instruction.code) for instruction in pickletools.opcodes}

_PythonUnpickler: Any = pickle._Unpickler


class _Whole:
    """A stream that has what is asked of it, or raises EOFError: the unpickler itself goes on with a part of a text."""

    def __init__(self, stream: io.BytesIO) -> None:
        self._stream = stream

    def read(self, count: int) -> bytes:
        content = self._stream.read(count)
        if len(content) < count:
            raise EOFError
        return content

    def readline(self) -> bytes:
        line = self._stream.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        return line


class _ArrayUnpickler(_PythonUnpickler):
    """The standard library's unpickler with a table of names, fewer instructions, and a bound on what calls are given."""

    def __init__(self, stream: io.BytesIO, names: Mapping[str, Known], persistent: Callable[[Any], Any] | None) -> None:
        super().__init__(_Whole(stream), encoding="latin1")  # of Python 2's text, which was bytes
        self._names, self._persistent = names, persistent
        here = stream.tell()
        size = stream.seek(0, io.SEEK_END)
        stream.seek(here)
        self._budget = 4 * size + 2**20  # bytes and entries given to calls: a large thing must not be copied over and over
        self.dispatch = _Instructions(_DISPATCH)

    def find_class(self, module: str, name: str) -> Known:
        if f"{module}.{name}" not in self._names:
            raise RefusedError(
                f"refused: it names {f'{module}.{name}'[:80]!a}, and only arrays are read; save the state_dict alone"
            )
        return self._names[f"{module}.{name}"]

    def persistent_load(self, identity: Any) -> Any:
        if self._persistent is None:
            raise RefusedError("refers to an object outside of the file")
        return self._persistent(identity)

    def load_bytearray8(self) -> None:
        (length,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(length)))  # the library allocates what is announced before it reads

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append(dict(_checked_pairs(items)))

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._top(dict)[_key(key)] = value

    def load_setitems(self) -> None:
        items = self.pop_mark()
        self._top(dict).update(_checked_pairs(items))

    def load_append(self) -> None:
        item = self.stack.pop()
        self._top(list).append(item)

    def load_appends(self) -> None:
        items = self.pop_mark()
        self._top(list).extend(items)

    def load_reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, Known) or function.call is None or type(arguments) is not tuple:
            raise RefusedError("refused: it calls what is no function")
        self._spend(arguments)
        self.append(function.call(*arguments))

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Array | Dtype) and isinstance(state, tuple):
            self._spend(state)
            target.set_state(state)
        elif type(target) is not dict:  # a state dict's `_metadata`, the versions of its layers, is left aside
            raise RefusedError(f"refused: it sets the state of a {type(target).__name__}")

    def _top(self, kind: type[Any]) -> Any:
        if type(self.stack[-1]) is not kind:
            raise RefusedError(f"damaged: changes a {type(self.stack[-1]).__name__} as if it were a {kind.__name__}")
        return self.stack[-1]

    def _spend(self, arguments: tuple[Any, ...]) -> None:
        sized = (str, bytes, bytearray, list, tuple, dict)
        self._budget -= len(arguments) + sum(len(argument) for argument in arguments if isinstance(argument, sized))
        if self._budget < 0:
            raise RefusedError("refused: it unfolds to many times its size")


def _checked_pairs(items: list[Any]) -> list[tuple[Any, Any]]:
    return [(_key(key), value) for key, value in zip(items[::2], items[1::2], strict=True)]


_OURS = {
    "BYTEARRAY8": _ArrayUnpickler.load_bytearray8,
    "DICT": _ArrayUnpickler.load_dict,
    "SETITEM": _ArrayUnpickler.load_setitem,
    "SETITEMS": _ArrayUnpickler.load_setitems,
    "APPEND": _ArrayUnpickler.load_append,
    "APPENDS": _ArrayUnpickler.load_appends,
    "REDUCE": _ArrayUnpickler.load_reduce,
    "BUILD": _ArrayUnpickler.load_build,
}
_DISPATCH: Mapping[int, Callable[..., None]] = {
    _CODES[name]: _OURS.get(name, pickle._Unpickler.dispatch[_CODES[name]]) for name in _ALLOWED.split()
}


class _Instructions:
    """What the unpickler does for each instruction; looked up once for each, and so what counts them."""

    def __init__(self, dispatch: Mapping[int, Callable[..., None]]) -> None:
        self._dispatch, self._left = dispatch, MAX_INSTRUCTIONS

    def __getitem__(self, code: int) -> Callable[..., None]:
        self._left -= 1
        if self._left < 0:
            raise RefusedError(f"has more than {MAX_INSTRUCTIONS:,} instructions, which no file of weights needs")
        if code not in self._dispatch:
            name = next((name for name, known_code in _CODES.items() if known_code == code), f"{code:#04x}")
            raise RefusedError(f"damaged, or refused: it uses the pickle instruction {name}, which arrays have no need of")
        return self._dispatch[code]
