"""Files that are whole or absent: written under another name, brought to the disk, then renamed."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


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
