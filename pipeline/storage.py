"""Files on disks and in object stores, by one set of functions.

A location is a path, or a URL of one of Beam's filesystems: gs://bucket/folder, s3://bucket/folder. On a disk, `pipeline.files`
sees to it that a file is whole or absent; in an object store it is uploaded under another name, and then renamed.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import io
import itertools
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from pipeline import files
from pipeline.command import UserError, reason_of

# Bytes of an image's file: no image is larger, and a damaged directory or a sparse file may announce any size.
MAX_IMAGE_BYTES = 1 << 28
# Bytes of what a conversion notes for itself: millions of images need less. The limit also refuses what is no regular file.
MAX_NOTE_BYTES = 1 << 32
# Bytes that a jump in an object fetches: more than most images have.
_BYTES_PER_JUMP = 1 << 18
# Scheme → module of the client that Beam needs for it, and the extra of apache-beam that installs it.
_CLIENTS = {
    "gs": ("google.cloud.storage", "gcp"),
    "s3": ("boto3", "aws"),
    "azfs": ("azure.storage.blob", "azure"),
    "hdfs": ("hdfs", "hadoop"),
}


def is_url(location: str) -> bool:
    return "://" in location


def _beam() -> Any:
    """Beam's `FileSystems`. Importing Beam takes a second, which those who give paths need not wait for."""
    from apache_beam.io.filesystems import FileSystems

    return FileSystems


def join(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}" if is_url(folder) else os.path.join(folder, name)  # noqa: PTH118 (keeps "./")


def check(location: str) -> None:
    """Refuses a URL that nothing here can read.

    Raises:
      UserError: no such scheme, no client installed for it, or a client that cannot reach the place.
    """
    if not is_url(location):
        return
    scheme = location.partition("://")[0]
    module, extra = _CLIENTS.get(scheme, ("", ""))
    if module and not _installed(module):
        raise UserError(f"{location}: {scheme}:// needs a client that is not installed; pip install 'apache-beam[{extra}]'")
    try:
        _beam().get_filesystem(location)
    except ValueError:
        known = ", ".join(f"{name}://" for name in _CLIENTS)
        raise UserError(f"{location}: Beam has no filesystem for {scheme}://; it has {known}, and paths") from None
    try:
        exists(join(location, "pipeline.json"))
    except OSError as error:
        raise UserError(f"{location}: cannot be reached ({reason_of(error)})") from None


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even its parent
        return False


@contextlib.contextmanager
def _errors_of(location: str) -> Iterator[None]:
    """Makes an OSError of whatever a store's client raises; each has errors of its own."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise OSError(errno.EIO, reason_of(error), location) from error


def open_for_reading(location: str) -> BinaryIO:
    """Opens a file that can seek.

    Raises:
      FileNotFoundError: the file is missing.
      OSError: the file cannot be read.
    """
    if not is_url(location):
        return Path(location).open("rb")
    try:
        with _errors_of(location):
            return _cheap_jumps(_beam().open(location, compression_type="uncompressed"))
    except OSError:
        if exists(location):
            raise
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), location) from None


def _cheap_jumps(file: Any) -> BinaryIO:
    """Beam's readers fetch 16 MiB at every jump, a hundred times the image in a zip that is jumped to."""
    if isinstance(file, io.BufferedReader):  # s3://, azfs://
        return io.BufferedReader(file.detach(), _BYTES_PER_JUMP)
    if hasattr(file, "_chunk_size"):  # gs://
        file._chunk_size = _BYTES_PER_JUMP
    opened: BinaryIO = file
    return opened


def read(location: str, limit: int | None = None) -> bytes:
    """The content of a file.

    Args:
      limit: for a file of a folder that others filled, the number of bytes up to which it is read. On a disk, what is no
        regular file is then refused, too: a FIFO would wait for ever, a device never end.

    Raises:
      FileNotFoundError: the file is missing.
      OSError: the file cannot be read, or is refused by `limit`.
    """
    if limit is not None and not is_url(location):
        with files.open_regular(Path(location), limit) as regular:
            return regular.read()
    with _errors_of(location), open_for_reading(location) as file:
        content = file.read(-1 if limit is None else limit + 1)
    if limit is not None and len(content) > limit:
        raise OSError(errno.EFBIG, f"more than the {limit} bytes that are read", location)
    return content


def exists(location: str) -> bool:
    if not is_url(location):
        return Path(location).exists()
    with _errors_of(location):
        return bool(_beam().exists(location))


def size(location: str) -> int | None:
    """Bytes of a file; None if the file is missing."""
    if not is_url(location):
        try:
            return Path(location).stat().st_size
        except FileNotFoundError:  # asked and answered at once: others may be removing it
            return None
    if not exists(location):
        return None
    with _errors_of(location):
        return int(_beam().get_filesystem(location).size(location))


def listing(folder: str, prefix: str = "", *, limit: int | None = None) -> dict[str, int]:
    """The files of a folder whose names begin so, and their bytes, sorted by name; at most `limit` of them."""
    if not is_url(folder):
        paths = itertools.islice((path for path in Path(folder).glob(f"{prefix}*") if path.is_file()), limit)
        return dict(sorted((path.name, path.stat().st_size) for path in paths))
    with _errors_of(folder):
        found = _beam().match([join(folder, f"{prefix}*")], limits=[limit])[0].metadata_list
    return dict(sorted((metadata.path.rpartition("/")[2], metadata.size_in_bytes) for metadata in found))


def matches(pattern: str) -> dict[str, int]:
    """The files of a URL with * (within a folder) or ** (through folders), and their bytes, sorted by name."""
    with _errors_of(pattern):
        found = _beam().match([pattern])[0].metadata_list
    return dict(sorted((metadata.path, metadata.size_in_bytes) for metadata in found))


def make_folder(folder: str) -> None:
    if not is_url(folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
        return
    with _errors_of(folder):
        if _has_folders(folder) and not exists(folder):
            _beam().mkdirs(folder)


def write(location: str, content: bytes | str) -> None:
    """Writes a small file whole or not at all; an older one of the same name stays until then.

    Raises:
      OSError: the file cannot be written; among others, Beam cannot write an empty object to S3.
    """
    if not is_url(location):
        files.write_file(Path(location), content)
        return
    temporary = f"{location}.{uuid.uuid4().hex}"
    with _errors_of(location):
        with _beam().create(temporary, compression_type="uncompressed") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        _rename(temporary, location)


def publish(written: Path, final: str, *, upload_as: str) -> None:
    """Brings a finished file of this machine to its final name, which holds all of it or is not there.

    On a disk the file is moved, and must be on the same file system. To an object store it is copied, first as `upload_as`.

    Raises:
      OSError: as `write` does.
    """
    if not is_url(final):
        files.publish(written, Path(final))
        return
    with _errors_of(final):
        with written.open("rb") as source, _beam().create(upload_as, compression_type="uncompressed") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        _rename(upload_as, final)


def _rename(temporary: str, final: str) -> None:
    # Object stores replace an object at once; a file system such as HDFS refuses a name that is taken.
    if _has_folders(final) and exists(final):
        _beam().delete([final])
    _beam().rename([temporary], [final])


def _has_folders(location: str) -> bool:
    return bool(_beam().get_filesystem(location).has_dirs())


def remove(folder: str, file_names: Iterable[str]) -> None:
    """Removes files of a folder; those that are not there are no error."""
    if not is_url(folder):
        for name in file_names:
            Path(folder, name).unlink(missing_ok=True)
        return
    there = [location for name in file_names if exists(location := join(folder, name))]
    with _errors_of(folder):
        if there:
            _beam().delete(there)


def remove_folder(folder: str) -> None:
    """Removes a folder that has no folders in it; one that is not there is no error."""
    if not is_url(folder):
        shutil.rmtree(folder, ignore_errors=True)
        return
    remove(folder, listing(folder))
    with _errors_of(folder):
        if _has_folders(folder) and exists(folder):
            _beam().delete([folder])
