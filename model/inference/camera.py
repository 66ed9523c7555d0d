"""A camera, a stream (rtsp://) or a clip that stands in for one: always its newest frame, however slow the reader is."""

from __future__ import annotations

import sys
import threading
import time as clock
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from model.inference.video_reader import Frame, load_av, open_clip
from pipeline.command import UserError, reason_of

if TYPE_CHECKING:
    import av
    from av.container import InputContainer

PREFIX = "camera:"
STREAMS = ("rtsp://", "rtsps://")
_SECONDS_TO_ANSWER = 15.0  # of a stream


def is_camera(source: str) -> bool:
    """Whether a value of `--input` names a camera or a stream."""
    return source.startswith((PREFIX, *STREAMS))


class Camera:
    """Frames of a camera as they come; use it in a `with` statement. A thread of its own reads and decodes.

    Args:
      source: `camera:0` (its number), `camera:NAME` (a device, or a clip, which is then played at its own speed), or rtsp://….

    Attributes:
      came: frames that have come.
      error: why the camera ended; "" while it runs, and after the end of a clip.

    Raises:
      UserError: no such camera, nobody answers, or PyAV is missing.
    """

    def __init__(self, source: str) -> None:
        self._av = load_av()
        self.source = source
        self._plays_clip, self._container = self._opened(source)
        if not self._container.streams.video:
            self._container.close()
            raise UserError(f"--input={source}: no video comes from it")
        self._news = threading.Condition()
        self._frame: Frame | None = None
        self._ended = self._closing = False
        self.came = 0
        self.error = ""
        self._thread = threading.Thread(target=self._read, name="camera", daemon=True)

    def __enter__(self) -> Camera:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._closing = True
        self._thread.join(timeout=_SECONDS_TO_ANSWER)
        if not self._thread.is_alive():  # else the process's end closes it
            self._container.close()

    def newest(self, after: int, seconds: float) -> Frame | None:
        """The newest frame whose index is above `after`, once there is one; None if `seconds` pass or the camera has ended."""
        with self._news:
            self._news.wait_for(lambda: self._ended or (self._frame is not None and self._frame.index > after), seconds)
            return self._frame if self._frame is not None and self._frame.index > after else None

    @property
    def ended(self) -> bool:
        return self._ended

    def _opened(self, source: str) -> tuple[bool, InputContainer]:
        name = source.removeprefix(PREFIX)
        if source.startswith(PREFIX) and Path(name).is_file():
            return True, open_clip(self._av, Path(name))
        options = {}
        if source.startswith(STREAMS):
            address, device_format, options = source, None, {"rtsp_transport": "tcp"}
        elif sys.platform == "darwin":
            address, device_format, options = name, "avfoundation", {"framerate": "30"}
        elif sys.platform == "win32":
            address, device_format = f"video={name}", "dshow"
        else:
            address, device_format = f"/dev/video{name}" if name.isdecimal() else name, "v4l2"
        try:
            return False, self._av.open(address, format=device_format, options=options, timeout=_SECONDS_TO_ANSWER)
        except (self._av.error.FFmpegError, OSError, ValueError) as error:
            hint = "is it on, and is the address right?" if source.startswith(STREAMS) else "ls /dev/video* lists cameras"
            raise UserError(f"--input={source}: cannot be opened ({reason_of(error)}); {hint}") from None

    def _read(self) -> None:
        started = clock.monotonic()
        try:
            for raw in self._decoded():
                passed = clock.monotonic() - started
                if self._plays_clip and raw.time is not None:
                    clock.sleep(max(0.0, raw.time - passed))
                    passed = raw.time
                turns = round(raw.rotation / 90) % 4
                pixels = np.ascontiguousarray(np.rot90(raw.to_ndarray(format="rgb24"), turns), np.uint8)
                with self._news:
                    self._frame = Frame(self.came, passed, pixels, turns)
                    self.came += 1
                    self._news.notify_all()
                if self._closing:
                    return
        except (self._av.error.FFmpegError, OSError) as error:
            self.error = reason_of(error)
        finally:
            with self._news:
                self._ended = True
                self._news.notify_all()

    def _decoded(self) -> Iterator[av.VideoFrame]:
        try:
            yield from self._container.decode(self._container.streams.video[0])
        except self._av.error.EOFError:
            return
