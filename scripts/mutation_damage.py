"""How `scripts.mutations` damages an input: bytes anywhere or in certain places, values of a JSON, chunks of a PNG.

Each function takes sound bytes and a source of random numbers, of which the damaged bytes are a function.
"""

from __future__ import annotations

import contextlib
import copy
import json
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

Damage = Callable[[bytes, random.Random], bytes]

EXTREMES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**53 + 1, 2**63, -(2**63) - 1, 10**30, 10**400, 0.5, -0.0, 1e-320, 1e308, float("nan"),
    float("inf"), float("-inf"), "", "a", "..", "../a", "/etc/hostname", "a\x00b", "a\nb", "\x1b[31m", "\udcff", "1", "nan",
    "$\\frac$", "<b>", "x" * 5000, [], [[]], [None] * 3, [0] * 51, {}, {"": None}, {"id": {}},
)  # fmt: skip


def bytes_anywhere(content: bytes, rng: random.Random, first: int = 0, last: int | None = None) -> bytes:
    """Flips, overwrites, cuts, repeats or inserts, between the two places."""
    last = len(content) if last is None else min(last, len(content))
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        if last <= first:
            break
        place = rng.randrange(first, last)
        kind = rng.randrange(8)
        if kind <= 2:
            changed[place] ^= 1 << rng.randrange(8)
        elif kind == 3:
            changed[place] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif kind == 4:
            word = rng.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**16))
            order = rng.choice("<>")
            changed[place : place + 4] = struct.pack(f"{order}I", word)
        elif kind == 5:
            del changed[place : place + rng.choice((1, 2, 7, 100, len(changed)))]
        elif kind == 6:
            length = rng.choice((1, 4, 30))
            changed[place:place] = changed[place : place + length]
        else:
            changed[place:place] = rng.randbytes(rng.choice((1, 4, 20)))
        last = min(last, len(changed))
    return bytes(changed)


def header_bytes(content: bytes, rng: random.Random) -> bytes:
    return bytes_anywhere(content, rng, 0, 700)


def exif_bytes(content: bytes, rng: random.Random) -> bytes:
    """Within the EXIF block of a JPEG, whose length stays true."""
    start = content.index(b"Exif\x00\x00") + 6
    length = struct.unpack(">H", content[start - 8 : start - 6])[0] - 8
    changed = bytearray(content)
    for _ in range(rng.choice((1, 2, 4, 16))):
        changed[start + rng.randrange(length)] = rng.choice((0, 1, 5, 10, 0x7F, 0xFF, rng.randrange(256)))
    return bytes(changed)


def png_chunks(content: bytes, rng: random.Random) -> bytes:
    """Bytes of chunks, whose checksums are made anew; or chunks that are left out or repeated."""
    chunks, place = [], 8
    while place < len(content):
        (length,) = struct.unpack(">I", content[place : place + 4])
        chunks.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + length]))
        place += 12 + length
    number = rng.randrange(len(chunks))
    name, data = chunks[number]
    kind = rng.randrange(5)
    if kind == 0:
        del chunks[number]
    elif kind == 1:
        chunks.insert(rng.randrange(len(chunks)), (name, data))
    elif kind == 2:
        chunks[number] = (bytes_anywhere(name, rng)[:4].ljust(4, b"a"), data)
    else:
        chunks[number] = (name, bytes_anywhere(data, rng))
    return content[:8] + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def json_values(content: bytes, rng: random.Random) -> bytes:
    """A few values of a JSON text replaced, left out, repeated or renamed; or its bytes damaged."""
    if rng.random() < 0.2 or not content.lstrip().startswith((b"{", b"[")):
        return bytes_anywhere(content, rng)
    if rng.random() < 0.01:
        return rng.choice((b"[" * 200_000, b'{"a":' * 200_000, b"1" * 10_000, b"\xff\xfe[\x00]\x00", b"\xef\xbb\xbf" + content))
    root = {"": json.loads(content)}
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        _change_one(root, rng)
    return json.dumps(root.get("")).encode()


def json_lines(content: bytes, rng: random.Random) -> bytes:
    lines = content.splitlines()
    number = rng.randrange(len(lines))
    lines[number] = json_values(lines[number], rng)
    return b"\n".join(lines)


def _change_one(root: dict[str, Any], rng: random.Random) -> None:
    parent: Any = root
    key: Any = ""
    while True:  # deeper with every step
        value = parent[key] if not isinstance(parent, dict) or key in parent else None
        if not isinstance(value, dict | list) or not value or rng.random() < 0.12:
            break
        parent, key = value, rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
    kind = rng.randrange(10)
    if kind == 0 and parent is not root:
        del parent[key]
    elif kind == 1 and isinstance(parent, list):
        parent.insert(key, copy.deepcopy(parent[rng.randrange(len(parent))]))
    elif kind == 2 and isinstance(parent, dict) and parent is not root:
        parent[rng.choice(("", "x", "id", "a\nb"))] = parent.pop(key)
    elif kind == 3 and isinstance(parent.get(key) if isinstance(parent, dict) else parent[key], int | float):
        with contextlib.suppress(OverflowError):  # of an integer beyond any float
            number = parent[key]
            parent[key] = rng.choice((-number, number * 1e6, number + 1, str(number), float(number) + 0.5))
    elif kind == 4:
        parent[key] = [copy.deepcopy(parent[key]) if key in parent or isinstance(parent, list) else None]
    else:
        parent[key] = copy.deepcopy(rng.choice(EXTREMES))
