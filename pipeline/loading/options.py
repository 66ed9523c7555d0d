"""How batches are loaded: what happens to unreadable images, what is kept in memory, which machines make the batches.

`DataConfig` says what is in a batch; nothing here changes that.
"""

from __future__ import annotations

import dataclasses
import os
import re
import socket
from typing import Any, Literal, get_args

import numpy.typing as npt

from pipeline.command import UserError

OnError = Literal["fail", "skip"]
Cache = Literal["none", "records", "decoded"]
SECONDS_TO_ANSWER = 10.0  # for the dispatcher of a data service; its own client would wait without end


@dataclasses.dataclass(frozen=True)
class LoadingOptions:
    """Choices of a run.

    Attributes:
      on_error: what happens at an image that cannot be read. "fail": an error that names it. "skip": a padding image takes its
        place, and the batch names it in `unreadable`; being ready for that takes 1 to 2 ms of a core for every image.
      cache: what is kept in memory of an image once it has been read. "none": nothing. "records": the record. "decoded": the
        record and its pixels. `cache_bytes` says how much memory that takes.
      data_service: "grpc://host:port" of the dispatcher of a tf.data service whose workers make the batches; "": this process
        makes them. Each batch comes once, but in no certain order, and exact resumption is not promised.
    """

    on_error: OnError = "fail"
    cache: Cache = "none"
    data_service: str = ""

    def __post_init__(self) -> None:
        if self.on_error not in get_args(OnError):
            raise UserError(f"--on_error={self.on_error}: must be one of {', '.join(get_args(OnError))}")
        if self.cache not in get_args(Cache):
            raise UserError(f"--cache={self.cache}: must be one of {', '.join(get_args(Cache))}")
        if self.data_service and not re.fullmatch(r"grpc://[^/]+:\d+", self.data_service):
            raise UserError(f"--data_service={self.data_service}: must be like grpc://host:5050, the dispatcher's address")
        if self.data_service and self.cache != "none":
            raise UserError(
                f"--cache={self.cache}: is kept in this process, --data_service={self.data_service} reads in others; "
                "leave one out"
            )


PLAIN = LoadingOptions()


def check_possible(options: LoadingOptions, images: npt.NDArray[Any]) -> None:
    """Finds out before anything is read whether the memory suffices, and whether the data service answers.

    Args:
      images: the rows of the index that will be read.

    Raises:
      UserError: the memory does not suffice, or the service does not answer.
    """
    needed, machine = cache_bytes(images, options.cache), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > machine:
        raise UserError(
            f"--cache={options.cache}: takes {needed / 1e9:.1f} GB for these {len(images)} images, this machine has "
            f"{machine / 1e9:.1f} GB; keep less"
        )
    if options.data_service:
        silence = why_silent(options.data_service)
        if silence is not None:
            raise UserError(f"--data_service={options.data_service}: does not answer ({silence}); start its dispatcher first")


def why_silent(data_service: str) -> str | None:
    """Why a dispatcher does not answer; None if it does.

    Args:
      data_service: "grpc://host:port".
    """
    host, _, port = data_service.removeprefix("grpc://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), SECONDS_TO_ANSWER).close()
    except (OSError, OverflowError) as error:
        return str(error)
    return None


def cache_bytes(images: npt.NDArray[Any], cache: Cache) -> int:
    """Memory that a cache takes once all images have been read, on each machine that trains.

    Args:
      images: rows of the index.
    """
    records = int(images["length"].sum())
    pixels = 3 * int((images["height"].astype("int64") * images["width"]).sum())
    return {"none": 0, "records": records, "decoded": records + pixels}[cache]
