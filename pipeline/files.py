"""Files that are whole or absent: written under another name, brought to the disk, then renamed."""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.command import UserError


def publish(written: Path, final: Path) -> None:
    """Moves a finished file to its final name, such that after a power cut the name holds all of it or is not there.

    Both names must be on the same file system.
    """
    descriptor = os.open(written, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    written.replace(final)
    folder = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_file(path: Path, content: bytes | str) -> None:
    """Writes a small file whole or not at all; an older one of the same name stays until then.

    Several may write it at once, in threads or on machines that share the disk: the last one stands.

    Raises:
      OSError: it cannot be written; of `path`, whatever the other name was.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        publish(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


# JSON files, read with an error for people, written whole or not at all.

NO_SPACE = re.compile(r"\S")


def read_json(path: str | Path) -> Any:
    """Raises: UserError where there is no such file, or no JSON in it."""
    try:
        return json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder, not a JSON file") from None
    except (RecursionError, ValueError) as error:
        raise UserError(f"{path}: not JSON ({error})") from None


def iterate_list(path: str | Path) -> Iterator[Any]:
    """The entries of a JSON file that is one list, made one after the other: together they would take many times its size.

    Raises:
      UserError: no such file, no JSON, no list.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")  # with a byte order mark or without
        place = _next(text, 0)
        if text[place] != "[":
            raise UserError(f"{path}: must be a JSON list of entries")
        place = _next(text, place + 1)
        separator = "]" if text[place] == "]" else ","
        while separator == ",":
            entry, place = json.JSONDecoder().raw_decode(text, place)
            yield entry
            place = _next(text, place)
            separator = text[place]
            if separator == ",":
                place = _next(text, place + 1)
        if separator != "]" or text[place + 1 :].strip():
            raise ValueError(f"unexpected {text[place : place + 20]!r} after an entry")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder, not a JSON file") from None
    except (RecursionError, ValueError) as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    except IndexError:
        raise UserError(f"{path}: not JSON (it ends within the list)") from None


def _next(text: str, place: int) -> int:
    """The first place from `place` on that holds no white space; the end of the text where there is none."""
    found = NO_SPACE.search(text, place)
    return found.start() if found else len(text)


def write_json(path: Path, value: Any) -> None:
    """Writes `value`, a list with one entry a line, and the folder that the file lies in."""
    if isinstance(value, list):
        text = "[\n" + ",\n".join(json.dumps(entry) for entry in value) + "\n]\n" if value else "[]\n"
    else:
        text = json.dumps(value, indent=2) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, text)
