"""Pictures in a zip file, such as COCO's train2017.zip, read in place.

The main process reads the zip's directory once, and tells every shard where its pictures lie; workers read only those bytes.
"""

from __future__ import annotations

import dataclasses
import struct
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterable
from typing import BinaryIO

from pipeline import storage
from pipeline.command import UserError

# No picture is larger; a damaged directory or a malicious one may say anything.
MAX_MEMBER_BYTES = 1 << 28
_ENCRYPTED = 1  # bit of a member's flags
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, …, lengths of the name and of the extra field that follow


@dataclasses.dataclass(frozen=True)
class ZipMember:
    """Where a file lies in a zip.

    Attributes:
      offset: of its local header, in bytes.
      stored_bytes: that it takes in the zip.
      content_bytes, crc32: of the file itself.
      deflated: else stored as it is.
    """

    offset: int
    stored_bytes: int
    content_bytes: int
    crc32: int
    deflated: bool


def find_members(location: str, file_names: Iterable[str]) -> dict[str, ZipMember | str]:
    """Finds files by the names that annotations give them, in whatever folders of the zip they lie.

    Returns:
      For each name its member, or the reason why there is no usable one.

    Raises:
      UserError: the zip cannot be read.
    """
    wanted = set(file_names)
    last_parts = {name.rpartition("/")[2] for name in wanted}
    found: dict[str, list[zipfile.ZipInfo]] = defaultdict(list)
    try:
        with storage.open_for_reading(location) as file, zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                path = info.filename.replace("\\", "/")  # (some programs on Windows write those)
                if path.rpartition("/")[2] in last_parts:
                    for name in _endings(path):
                        if name in wanted:
                            found[name].append(info)
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise UserError(f"{location}: not a whole zip file ({storage.reason(error)}); fetch or copy it again") from None
    return {name: _member(name, found[name]) for name in wanted}


def _endings(path: str) -> Iterable[str]:
    """a/b/c, b/c, c."""
    parts = path.split("/")
    return ("/".join(parts[i:]) for i in range(len(parts)))


def _member(name: str, infos: list[zipfile.ZipInfo]) -> ZipMember | str:
    exact = [info for info in infos if info.filename == name]
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
    if max(info.file_size, info.compress_size) > MAX_MEMBER_BYTES:
        return f"{info.file_size} bytes in the zip, at most {MAX_MEMBER_BYTES} are read"
    return ZipMember(
        info.header_offset, info.compress_size, info.file_size, info.CRC, info.compress_type == zipfile.ZIP_DEFLATED
    )


def read_member(archive: BinaryIO, member: ZipMember) -> bytes:
    """Reads a file of an opened zip.

    Raises:
      ValueError: it is damaged.
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
