"""Reads pickles that hold arrays, numbers, text and containers of these, and refuses every other one; nothing in them is run.

`pickle.Unpickler` looks up whatever function a file names and calls it. Here the file's instructions are taken apart by
`pickletools.genops`, which executes nothing, and followed by a machine that knows those of them that arrays need. Names of
functions are looked up in a table of our own, so no import, no attribute and no method of any object can be reached.
"""

from __future__ import annotations

import dataclasses
import io
import math
import pickletools
import re
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
    sizes = checked_sizes(shape)
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


def checked_sizes(shape: Any) -> tuple[int, ...]:
    """A shape, or strides. Raises: RefusedError where it is no short tuple of integers from 0."""
    if not isinstance(shape, tuple | list) or len(shape) > 32 or not all(type(n) is int and 0 <= n < _INT64 for n in shape):
        raise RefusedError("an array's shape is not a tuple of sizes: damaged")
    return tuple(shape)


def _dtype(text: Any, *_: Any) -> Dtype:
    if not isinstance(text, str) or not re.fullmatch(r"[<>=|]?(b1|[iuf][1248])", text):
        raise RefusedError("holds an array of Python objects or records, not of numbers")
    return Dtype(np.dtype(text))


def _encode(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):  # how protocol 2 writes bytes
        raise RefusedError("calls _codecs.encode otherwise than arrays need it")
    return text.encode("latin1")


def _empty_bytes(*arguments: Any) -> bytes:
    if arguments:
        raise RefusedError("calls bytes otherwise than arrays need it")
    return b""


def _ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
    made = {}
    for key, value in pairs:
        made[_key(key)] = value
    return made


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
      stream: the file; what a pickle announces can then never be more than there is.
      names: what may be named besides NumPy's arrays.
      persistent: makes the value of a persistent id, of which by default none is known.

    Returns:
      None, numbers, text, bytes, lists, tuples, dictionaries, `Array`, and what `names` and `persistent` make.

    Raises:
      RefusedError: damaged, truncated, or holding anything else.
    """
    machine = _Machine({**_NUMPY, **(names or {})}, persistent, budget=4 * len(stream.getbuffer()) + 2**20)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count > MAX_INSTRUCTIONS:
                raise RefusedError(f"has more than {MAX_INSTRUCTIONS:,} instructions, which no file of weights needs")
            machine.step(opcode.name, argument)
        return machine.result()
    except RefusedError:
        raise
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise RefusedError(f"damaged or truncated pickle ({str(error)[:100]})") from None


class _Machine:
    """The stack, the marks and the memo of a pickle."""

    def __init__(self, names: Mapping[str, Known], persistent: Callable[[Any], Any] | None, budget: int) -> None:
        self._names, self._persistent = names, persistent
        self._budget = budget  # bytes and entries that calls may be given: a large thing must not be copied over and over
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def result(self) -> Any:
        (value,) = self._stack
        return value

    def step(self, name: str, argument: Any) -> None:
        """Follows one instruction."""
        stack = self._stack
        match name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case (
                "INT" | "BININT" | "BININT1" | "BININT2" | "LONG" | "LONG1" | "LONG4" | "FLOAT" | "BINFLOAT"
                | "STRING" | "BINSTRING" | "SHORT_BINSTRING" | "UNICODE" | "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8"
                | "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8" | "BYTEARRAY8"
            ):  # fmt: skip
                stack.append(argument)
            case "MARK":
                self._marks.append(len(stack))
            case "POP":
                stack.pop()
            case "POP_MARK":
                self._since_mark()
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "EMPTY_TUPLE" | "EMPTY_LIST" | "EMPTY_DICT":
                stack.append({"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}[name]())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                items = tuple(stack.pop() for _ in range(count))
                stack.append(items[::-1])
            case "TUPLE":
                stack.append(tuple(self._since_mark()))
            case "LIST":
                stack.append(self._since_mark())
            case "APPEND":
                item = stack.pop()
                self._top(list).append(item)
            case "APPENDS":
                items_of_list = self._since_mark()
                self._top(list).extend(items_of_list)
            case "DICT":
                items_of_dict = self._since_mark()
                stack.append({})
                self._set_items(items_of_dict)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                self._set_items([key, value])
            case "SETITEMS":
                self._set_items(self._since_mark())
            case "GLOBAL":
                module, _, attribute = argument.partition(" ")
                stack.append(self._name(module, attribute))
            case "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                stack.append(self._name(module, attribute))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(self._call(function, arguments))
            case "BUILD":
                state = stack.pop()
                self._build(stack[-1], state)
            case "BINPERSID":
                if self._persistent is None:
                    raise RefusedError("refers to an object outside of the file")
                stack.append(self._persistent(stack.pop()))
            case _:  # INST, OBJ, NEWOBJ, NEWOBJ_EX, EXT*, PERSID, NEXT_BUFFER and what later protocols bring
                raise RefusedError(f"refused: it uses the pickle instruction {name}, which arrays have no need of")

    def _since_mark(self) -> list[Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _top(self, kind: type[Any]) -> Any:
        if type(self._stack[-1]) is not kind:
            raise RefusedError(f"damaged: changes a {type(self._stack[-1]).__name__} as if it were a {kind.__name__}")
        return self._stack[-1]

    def _set_items(self, items: list[Any]) -> None:
        target = self._top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value

    def _name(self, module: Any, attribute: Any) -> Known:
        if not isinstance(module, str) or not isinstance(attribute, str) or f"{module}.{attribute}" not in self._names:
            shown = f"{module}.{attribute}" if isinstance(module, str) and isinstance(attribute, str) else "something"
            raise RefusedError(f"refused: it names {shown[:80]!a}, and only arrays are read; save the state_dict alone")
        return self._names[f"{module}.{attribute}"]

    def _call(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, Known) or function.call is None or type(arguments) is not tuple:
            raise RefusedError("refused: it calls what is no function")
        self._spend(arguments)
        return function.call(*arguments)

    def _spend(self, arguments: tuple[Any, ...]) -> None:
        self._budget -= len(arguments) + sum(len(a) for a in arguments if isinstance(a, str | bytes | bytearray | list | tuple))
        if self._budget < 0:
            raise RefusedError("refused: it unfolds to many times its size")

    def _build(self, target: Any, state: Any) -> None:
        if isinstance(target, Array | Dtype) and isinstance(state, tuple):
            self._spend(state)
            target.set_state(state)
        elif type(target) is not dict:  # a state dict's `_metadata`, the versions of its layers, is left aside
            raise RefusedError(f"refused: it sets the state of a {type(target).__name__}")
