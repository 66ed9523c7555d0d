"""The ports that a process and its children open, as Linux tells them."""

from __future__ import annotations

import contextlib
import ipaddress
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

_LISTEN = "0A"  # the state, in /proc/net/tcp


@contextlib.contextmanager
def ports_of(process: subprocess.Popen[str]) -> Iterator[set[str]]:
    """Looks at the listening sockets of a process and its children until the end of the block.

    Yields:
      addresses such as "127.0.0.1:40211", added as they are seen.
    """
    found: set[str] = set()
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.1):
            found.update(_listening(process.pid))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def open_to_others(addresses: set[str]) -> set[str]:
    return {address for address in addresses if not ipaddress.ip_address(address.rpartition(":")[0]).is_loopback}


def _listening(root: int) -> set[str]:
    inodes = {inode for process in _tree(root) for inode in _sockets(process)}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTEN and fields[9] in inodes:
                found.add(_address(fields[1]))
    return found


def _tree(root: int) -> list[int]:
    """The process and all below it."""
    processes = [root]
    for process in processes:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{process}/task").iterdir():
                processes += [int(child) for child in (task / "children").read_text().split()]
    return processes


def _sockets(process: int) -> Iterator[str]:
    with contextlib.suppress(OSError):
        for descriptor in Path(f"/proc/{process}/fd").iterdir():
            with contextlib.suppress(OSError):
                match = re.fullmatch(r"socket:\[(\d+)\]", str(descriptor.readlink()))
                if match:
                    yield match.group(1)


def _address(text: str) -> str:
    """0100007F:9D13 → 127.0.0.1:40211. The kernel writes words of four bytes in the machine's order."""
    words, _, port = text.partition(":")
    content = b"".join(int(words[i : i + 8], 16).to_bytes(4, sys.byteorder) for i in range(0, len(words), 8))
    address = ipaddress.ip_address(content)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return f"{mapped or address}:{int(port, 16)}"
