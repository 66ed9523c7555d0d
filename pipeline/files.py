"""Files of a disk that are whole or absent, folders that one process writes to, and JSON whose damage is named in one line.

A file is written under another name, brought to the disk, then renamed. What is read may come from strangers.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import socket
import stat
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

from pipeline.command import UserError

JSON_LIMIT = 64 << 20  # bytes of a JSON file that a command wrote; the largest, metrics aside, have some kilobytes
NO_SPACE = re.compile(r"\S")

Parsed = TypeVar("Parsed")


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

    Threads, or machines that share the disk, may write it at once: the last one stands.

    Raises:
      OSError: the file cannot be written. The error names `path`, not the temporary file.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        publish(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def open_regular(path: Path, limit: int) -> BufferedReader:
    """Opens a file that lies in somebody else's folder: never a FIFO, which would wait for ever, a device or a giant.

    Args:
      limit: the number of bytes up to which the file is opened.

    Raises:
      OSError: the file is missing, cannot be read, is no regular file (links are followed), or is larger than `limit`.
    """
    _check_regular(os.stat(path), path, limit)  # noqa: PTH116 (opening some devices already does something)
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    try:
        _check_regular(os.fstat(file.fileno()), path, limit)
    except OSError:
        file.close()
        raise
    return file


def _check_regular(status: os.stat_result, path: Path, limit: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket"}
        raise OSError(errno.EINVAL, f"a {kinds.get(stat.S_IFMT(status.st_mode), 'device')}, not a file", str(path))
    if status.st_size > limit:
        raise OSError(errno.EFBIG, f"{status.st_size} bytes long, at most {limit} are read", str(path))


def note_sha256(files: Sequence[Path], note: Path, folder: Path) -> None:
    """Writes the sha256 of some files of a folder to `note`, by their names in the folder."""
    digests = {}
    for path in files:
        with path.open("rb") as file:
            digests[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    write_json(note, digests)


def changed_file(note: Path, folder: Path) -> str | None:
    """What is wrong with the files that `note_sha256` noted; None if they are as they were, or nothing was noted."""
    if not note.exists():
        return None
    try:
        digests = dict(read_json(note))
    except (UserError, TypeError, ValueError):
        return f"{note.name} is damaged"
    for name, digest in digests.items():
        try:
            with open_regular(folder / name, sys.maxsize) as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    return f"{name} is not as it was saved: its sha256 differs"
        except FileNotFoundError:
            return f"{name:.100} is missing"
        except (OSError, ValueError) as error:
            return f"{name:.100}: {getattr(error, 'strerror', None) or error}"
    return None


@contextlib.contextmanager
def only_writer(folder: str | Path, what: str) -> Iterator[None]:
    """Holds a lock on a folder, which the kernel gives back however the process ends.

    The folder is made if it is missing. The lock is a file `.lock` in it, which goes when the work ends; a `.lock` that a
    killed process left holds nobody up. Two threads of one process exclude each other, too. A file system without locks lets
    everybody in.

    Args:
      what: the work, as the other process reads it: "training", "export".

    Raises:
      UserError: another process holds the lock.
      OSError: the folder cannot be made or written to.
    """
    folder = Path(folder)
    is_new = not folder.exists()
    descriptor = _locked(folder, what)
    try:
        yield
    finally:
        (folder / ".lock").unlink(missing_ok=True)  # before the lock goes, so that nobody else's is removed
        os.close(descriptor)
        if is_new:
            with contextlib.suppress(OSError):  # it holds something, as it should
                folder.rmdir()


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _locked(folder: Path, what: str) -> int:
    """The descriptor of a locked `.lock`, in which its holder stands."""
    path = folder / ".lock"
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            if folder.is_dir() or not os.path.lexists(folder):  # another process has removed it, or made it anew, meanwhile
                continue
            raise
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:  # another process has just removed the folder that it had made
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            its_work, _, process = os.pread(descriptor, 100, 0).decode(errors="replace").partition("\n")
            os.close(descriptor)
            who = f"another {what}" if its_work in ("", what) else f"{'an' if its_work[0] in 'aeio' else 'a'} {its_work}"
            which = f" ({process.strip()})" if process else ""
            raise UserError(f"{folder}: {who}{which} is writing to it; wait for its end, or name another folder") from None
        except OSError:  # a file system without locks
            return descriptor
        if _is_at(descriptor, path):
            with contextlib.suppress(OSError):  # a full disk cannot take the holder's name; the lock holds
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{what}\nprocess {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            return descriptor
        os.close(descriptor)  # its holder removed the name between opening and locking


def read_json(path: str | Path) -> Any:
    """The content of a JSON file that a person names.

    Raises:
      UserError: the file is missing, or holds no JSON.
    """
    try:
        return json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder, not a JSON file") from None
    except (RecursionError, ValueError) as error:
        raise UserError(f"{path}: not JSON ({error})") from None


def checked_json(
    path: str | Path, damage: str, parse: Callable[[Any], Parsed], *, remedy: str = "copy it again, or make it anew"
) -> Parsed:
    """What `parse` makes of a JSON file that a command wrote; whatever is wrong with the file becomes one line.

        config = checked_json(model_dir / "config.json", "not a configuration", from_json)

    Args:
      damage: what the message says of the file, before the reason.
      parse: takes the JSON's value. It may fail on a value of a wrong type or form however Python fails on it.
      remedy: what the message says after the reason.

    Raises:
      UserError: the file is missing, no regular file, larger than 64 MiB, no JSON, or `parse` fails.
    """
    try:
        with open_regular(Path(path), JSON_LIMIT) as file:
            content = file.read()
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise UserError(f"{path}: {damage} ({reason}); {remedy}") from None
    return parsed_json(content, f"{path}: {damage}", parse, remedy=remedy)


def parsed_json(content: bytes | str, damage: str, parse: Callable[[Any], Parsed], *, remedy: str) -> Parsed:
    """As `checked_json`, for text that is at hand; `damage` says whose."""
    try:
        return parse(json.loads(content))
    except UserError as error:
        raise UserError(f"{damage} ({error}); {remedy}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{damage} (not JSON: {error}); {remedy}") from None
    except KeyError as error:
        raise UserError(f"{damage} ({error} is missing); {remedy}") from None
    except (AttributeError, TypeError):  # Python's own words on them help nobody
        raise UserError(f"{damage} (a value of another type than the one that belongs there); {remedy}") from None
    except (ArithmeticError, LookupError, RecursionError, ValueError) as error:
        raise UserError(f"{damage} ({type(error).__name__}: {str(error)[:200]}); {remedy}") from None


def an_object(value: Any) -> dict[str, Any]:
    """For `checked_json`, of a file that should hold an object of whatever keys. Raises: UserError."""
    if not isinstance(value, dict):
        raise UserError(f"{value!r:.40} is no JSON object")
    return value


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
    """The first place from `place` on that holds no white space; the end of the text if there is no such place."""
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
