"""The files of images: where they lie (a folder, a zip, an object store), and reading them.

Annotations made elsewhere may write a name otherwise than the disk has it: with backslashes, with `./`, with letters and
accents composed or apart (NFC, NFD). All these forms are looked for; another letter case is another name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import os
import struct
import threading
import unicodedata
import zipfile
import zlib
from collections import defaultdict, deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from pipeline import storage
from pipeline.annotation_file import plain_name
from pipeline.coco import CocoImage
from pipeline.command import UserError, reason_of
from pipeline.image import stored_orientation, swaps_sides
from pipeline.storage import MAX_IMAGE_BYTES
from pipeline.writing.checked_image import ImageError, stored_size

# Requests to an object store that are under way at once: each is answered after some 50 ms, an image takes 3 ms of work.
REQUESTS_AT_ONCE = 24

# Errors of a disk, a network or this process, which may be gone at the next attempt. To leave an image out for them would be
# wrong.
_PASSING_ERRORS = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE, errno.ENOMEM}


class UnreadableError(Exception):
    """The place of the images cannot be read, which is no fault of an image. The message says what, and why."""


def check_images(images: str) -> None:
    """Refuses what is neither a folder of images nor a zip.

    Raises:
      UserError: `images` is missing or cannot be read.
    """
    storage.check(images)
    if storage.is_url(images):
        if not is_zip(images) and not storage.listing(images, limit=1):
            raise UserError(f"{images}: no images there; give the folder that the file names are relative to, or a zip file")
    elif not Path(images).exists():
        raise UserError(f"{images}: no such folder of images or zip file")
    elif not is_zip(images) and not Path(images).is_dir():
        raise UserError(f"{images}: neither a folder of images nor a .zip file")


def is_zip(images: str) -> bool:
    return images.lower().endswith(".zip") and (storage.is_url(images) or Path(images).is_file())


def locate(images: str, entries: Sequence[CocoImage]) -> list[LocatedImage]:
    """Adds the place of each image in its zip.

    Raises:
      UserError: the zip cannot be read.
    """
    if not is_zip(images):
        return [(entry, None) for entry in entries]
    members = find_members(images, (entry.file_name for entry in entries if not entry.error))
    return [(entry, members.get(entry.file_name)) for entry in entries]


def bytes_of(images: str, located: LocatedImage) -> int:
    """The size of an image's file in bytes; 0 if it cannot be found."""
    entry, member = located
    if isinstance(member, ZipMember):
        return member.content_bytes
    for name in forms(entry.file_name) if entry.file_name and member is None else ():
        with contextlib.suppress(OSError, ValueError):
            if size := storage.size(storage.join(images, name)):
                return size
    return 0


def forms(file_name: str) -> list[str]:
    """The forms in which a file's name may be on the disk, its own first."""
    plain = plain_name(file_name)
    return list(dict.fromkeys([file_name, plain, unicodedata.normalize("NFD", plain)]))


def read_all(images: str, entries: Sequence[LocatedImage]) -> Generator[tuple[CocoImage, bytes | ImageError]]:
    """Reads the files of images, in their order; from an object store, many at a time.

    Raises:
      UnreadableError: the place where the images lie does not answer as it should.
    """
    with _Reader(images) as reader:
        if not storage.is_url(images):
            for located in entries:
                yield located[0], reader.read(located)
            return
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            rest = iter(entries)
            under_way: deque[tuple[CocoImage, Future[bytes | ImageError]]] = deque()
            try:
                while True:
                    for located in itertools.islice(rest, REQUESTS_AT_ONCE - len(under_way)):
                        under_way.append((located[0], pool.submit(reader.read, located)))
                    if not under_way:
                        return
                    entry, future = under_way.popleft()
                    yield entry, future.result()
            finally:
                pool.shutdown(cancel_futures=True)


class _Reader:
    """Reads images from one place, in any thread; a zip is opened once in each."""

    def __init__(self, images: str) -> None:
        self._images = images
        self._of_thread = threading.local()
        self._archives = contextlib.ExitStack()

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._archives.close()

    def read(self, located: LocatedImage) -> bytes | ImageError:
        entry, member = located
        if entry.error or isinstance(member, str):
            return ImageError(entry.error or member)
        try:
            os.fsencode(entry.file_name)
        except UnicodeEncodeError:
            return ImageError("file_name holds half a character, which no file's name can")
        try:
            content = read_member(self._archive(), member) if member else self._read_file(entry.file_name)
        except FileNotFoundError:
            return ImageError("no such file")
        except (IsADirectoryError, NotADirectoryError):
            return ImageError("not a file")
        except OSError as error:
            if error.errno in _PASSING_ERRORS:
                raise UnreadableError(f"{entry.file_name} in {self._images}: {reason_of(error)}") from None
            return ImageError(f"cannot be read ({reason_of(error)})")
        except ValueError as error:
            return ImageError(str(error))
        return content or ImageError("the file is empty")

    def _read_file(self, file_name: str) -> bytes:
        """Raises: FileNotFoundError if the file has none of the name's forms; OSError or ValueError if it cannot be read."""
        *others, last = forms(file_name)
        for name in others:
            with contextlib.suppress(FileNotFoundError):
                return storage.read(storage.join(self._images, name), MAX_IMAGE_BYTES)
        return storage.read(storage.join(self._images, last), MAX_IMAGE_BYTES)

    def _archive(self) -> BinaryIO:
        if not hasattr(self._of_thread, "archive"):
            try:
                self._of_thread.archive = self._archives.enter_context(storage.open_for_reading(self._images))
            except OSError as error:
                raise UnreadableError(f"{self._images}: {reason_of(error)}") from None
        archive: BinaryIO = self._of_thread.archive
        return archive


def measure(images: str, file_names: Sequence[str]) -> dict[str, tuple[int, int, bool] | str]:
    """Height and width of images as stored, and whether a stored rotation exchanges them; or why an image cannot be read."""
    entries = [CocoImage(number, name, 0, 0, ()) for number, name in enumerate(file_names)]
    sizes: dict[str, tuple[int, int, bool] | str] = {}
    for entry, content in read_all(images, locate(images, entries)):
        try:
            if isinstance(content, ImageError):
                raise content
            _, height, width = stored_size(content)
            sizes[entry.file_name] = (height, width, swaps_sides(stored_orientation(content)))
        except Exception as error:  # whatever a file holds, it is an error of that image alone
            sizes[entry.file_name] = str(error) or type(error).__name__
    return sizes


# Images in a zip file, such as COCO's train2017.zip, are read in place. The main process reads the zip's directory once, and
# tells every shard where its images lie; workers read only those bytes.

_ENCRYPTED, _UTF8 = 1, 0x800  # bits of a member's flags
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, …, lengths of the name and of the extra field that follow


@dataclasses.dataclass(frozen=True)
class ZipMember:
    """Where a file lies in a zip.

    Attributes:
      offset: of its local header, in bytes.
      stored_bytes: length of the compressed file in the zip.
      content_bytes, crc32: of the file itself.
      deflated: else stored as it is.
    """

    offset: int
    stored_bytes: int
    content_bytes: int
    crc32: int
    deflated: bool


# An image; and if it lies in a zip, where, or the reason why it cannot be found there.
LocatedImage = tuple[CocoImage, ZipMember | str | None]


def find_members(location: str, file_names: Iterable[str]) -> dict[str, ZipMember | str]:
    """Finds files by the names that annotations give them, in whatever folders of the zip they lie.

    Returns:
      For each name its member, or the reason why there is no usable one.

    Raises:
      UserError: the zip cannot be read.
    """
    names = {name: plain_name(name) for name in file_names}
    wanted = set(names.values())
    last_parts = {name.rpartition("/")[2] for name in wanted}
    found: dict[str, list[zipfile.ZipInfo]] = defaultdict(list)
    try:
        with storage.open_for_reading(location) as file, zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                for path in _names_of(info):
                    if path.rpartition("/")[2] in last_parts:
                        for name in _endings(path):
                            if name in wanted:
                                found[name].append(info)
                        break
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise UserError(f"{location}: not a whole zip file ({reason_of(error)}); fetch or copy it again") from None
    return {name: _member(plain, found[plain]) for name, plain in names.items()}


def member_names(location: str) -> list[str]:
    """The names of all files in a zip, in the zip's order. Raises: UserError if the zip cannot be read."""
    try:
        with storage.open_for_reading(location) as file, zipfile.ZipFile(file) as archive:
            return [next(iter(_names_of(info))) for info in archive.infolist() if not info.is_dir()]
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise UserError(f"{location}: not a whole zip file ({reason_of(error)}); fetch or copy it again") from None


def _names_of(info: zipfile.ZipInfo) -> Iterable[str]:
    """The plain forms of a member's name: programs that do not set the zip's UTF-8 flag write the names of their system."""
    yield plain_name(info.filename)
    if not info.flag_bits & _UTF8 and not info.filename.isascii():
        raw = info.filename.encode("cp437", errors="replace")
        for encoding in ("utf-8", "cp1252", "cp850", "gbk", "shift_jis"):
            with contextlib.suppress(UnicodeDecodeError):
                yield plain_name(raw.decode(encoding))


def _endings(path: str) -> Iterable[str]:
    """a/b/c, b/c, c."""
    parts = path.split("/")
    return ("/".join(parts[i:]) for i in range(len(parts)))


def _member(name: str, infos: list[zipfile.ZipInfo]) -> ZipMember | str:
    exact = [info for info in infos if name in _names_of(info)]
    infos = exact or infos
    if not infos:
        return "no such file in the zip"
    if len(infos) > 1:
        return f"{len(infos)} files of this name in the zip ({infos[0].filename}, {infos[1].filename})"
    info = infos[0]
    if info.flag_bits & _ENCRYPTED:
        return "encrypted in the zip"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"compressed in the zip by method {info.compress_type}; stored and deflated files are read"
    if max(info.file_size, info.compress_size) > MAX_IMAGE_BYTES:
        return f"{info.file_size} bytes in the zip, at most {MAX_IMAGE_BYTES} are read"
    return ZipMember(
        info.header_offset, info.compress_size, info.file_size, info.CRC, info.compress_type == zipfile.ZIP_DEFLATED
    )


def read_member(archive: BinaryIO, member: ZipMember) -> bytes:
    """Reads a file of an opened zip.

    Raises:
      ValueError: the member is damaged.
    """
    archive.seek(member.offset)
    header = archive.read(30)
    if len(header) < 30 or not header.startswith(b"PK\3\4"):
        raise ValueError("damaged in the zip: its header is not where the directory says")
    _, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(header)
    archive.seek(member.offset + 30 + name_bytes + extra_bytes)
    content = archive.read(member.stored_bytes)
    if member.deflated:
        try:
            content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, member.content_bytes + 1)
        except zlib.error:
            raise ValueError("damaged in the zip: it cannot be decompressed") from None
    if len(content) != member.content_bytes or zlib.crc32(content) != member.crc32:
        raise ValueError("damaged in the zip: its checksum is not the directory's")
    return content
