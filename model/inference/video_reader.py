"""The frames of a clip, upright and with their times: PyAV decodes whatever FFmpeg knows.

Times are in seconds from the clip's start, as a player counts them. A clip that breaks off gives the frames before the
break; what is missing or made up is said in `ClipReader.notes`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pipeline.command import UserError, counted, reason_of
from pipeline.data_config import MAX_PIXELS

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.video.stream import VideoStream

SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".3gp", ".ogv"),
)
_TIME = re.compile(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d*)?)")
_USUAL_RATE = Fraction(25)  # frames per second of a clip that does not tell its own
_VARIES = 1.5  # the longest step between two frames over the shortest, from which the rate counts as variable


def seconds_of(text: str | None, flag: str) -> float | None:
    """A time as people write it, 12.5, 1:02.5 or 1:00:00, in seconds. Raises: UserError for another form."""
    if text is None:
        return None
    parts = _TIME.fullmatch(text)
    if parts is None:
        raise UserError(f"{flag}={text}: must be a time in seconds or as 1:02.5 (minutes and seconds)")
    hours, minutes, seconds = (float(part or 0) for part in parts.groups())
    return 3600 * hours + 60 * minutes + seconds


def load_av() -> ModuleType:
    """PyAV. Raises: UserError that names the package if it is missing."""
    try:
        import av
    except ImportError:
        raise UserError("videos and cameras need PyAV, which is not installed; pip install '.[video]'") from None
    av.logging.set_level(av.logging.FATAL)  # what FFmpeg complains about is told by the errors
    return av


@dataclasses.dataclass(frozen=True)
class Frame:
    """One frame of a clip.

    Attributes:
      index: its number in the clip, or in the part that is read, from 0.
      time: seconds from the clip's start.
      pixels: uint8 [h, w, 3], RGB, as a viewer shows it: turned by the clip's rotation flag.
      turns: quarter turns, counterclockwise, that brought the stored frame upright.
      colours: colour space, range, transfer and primaries as the clip states them, in FFmpeg's numbers.
    """

    index: int
    time: float
    pixels: npt.NDArray[np.uint8]
    turns: int = 0
    colours: tuple[int, int, int, int] = (2, 0, 2, 2)  # not stated


class ClipReader:
    """A clip, open for reading; use it in a `with` statement.

    Args:
      path: of the file.
      start, end: seconds; frames before `start`, and from `end` on, are left out. None: the whole clip.

    Attributes:
      rate: frames per second, as the clip states them or as they are guessed.
      origin: seconds of the container's own clock at the clip's start.
      duration: seconds; None if the clip does not tell.
      aspect: width of a stored pixel over its height.
      time_base: seconds per unit of the clip's time stamps.
      broken: why the clip ended before its end; "" if it did not.

    Raises:
      UserError: no such file, no clip, no video in it, or frames that are too large.
    """

    def __init__(self, path: Path, start: float | None = None, end: float | None = None) -> None:
        self._av = load_av()
        self.path, self.start, self.end = path, start, end
        self.broken = ""
        self._made_up = self._damaged = 0
        self._last: float | None = None
        self._steps: tuple[float, float] | None = None  # the shortest and the longest between two frames
        self._container = open_clip(self._av, path)
        try:
            self._stream = _video_stream(path, self._container)
        except UserError:
            self._container.close()
            raise
        self._stream.thread_type = self._av.codec.context.ThreadType.AUTO
        self.rate = self._stream.guessed_rate or self._stream.average_rate or _USUAL_RATE
        self.origin = (self._container.start_time or 0) / 1e6
        self.time_base = self._stream.time_base or Fraction(1, 90_000)
        self.duration = self._duration()
        self.aspect = self._stream.sample_aspect_ratio or Fraction(1)
        if end is not None and end <= (start or 0):
            raise UserError(f"--to={end:g}: must be later than --from={start or 0:g}")
        if start is not None and self.duration is not None and start >= self.duration:
            raise UserError(f"--from={start:g}: {path} ends at {self.duration:.2f} s")

    def __enter__(self) -> ClipReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._container.close()

    @property
    def expected(self) -> int | None:
        """About how many frames there are to read; None if the clip does not tell."""
        if self.start is None and self.end is None and self._stream.frames:
            return self._stream.frames
        if self.duration is None:
            return None if self.end is None else round((self.end - (self.start or 0)) * float(self.rate))
        return max(1, round((min(self.end or self.duration, self.duration) - (self.start or 0)) * float(self.rate)))

    @property
    def notes(self) -> list[str]:
        """What a person should know of the clip, once it is read."""
        notes = []
        if self._steps is not None and self._steps[1] > _VARIES * self._steps[0] + 2 * float(self.time_base):
            shortest, longest = (f"{1000 * step:.0f}" for step in self._steps)
            notes.append(f"variable frame rate: {shortest} to {longest} ms from frame to frame; each frame keeps its time")
        if self._made_up:
            notes.append(
                f"{counted(self._made_up, 'frame')} without a time stamp of its own, timed by {float(self.rate):g} frames/s"
            )
        if self._damaged:
            notes.append(f"passed over: {counted(self._damaged, 'damaged packet')} of the clip, which cannot be decoded")
        others = [s.type for s in self._container.streams if s.type not in ("video", "audio")]
        others += ["video"] * (len(self._container.streams.video) - 1)
        if others:
            notes.append(f"streams that are left out: {', '.join(sorted(others))}")
        return notes

    def frames(self) -> Iterator[Frame]:
        """The frames in the order in which they are shown."""
        number = 0
        for raw in self._decoded():
            time = self._time_of(raw)
            if self.end is not None and time >= self.end - 1e-6:
                return
            if self.start is not None and time < self.start - 1e-6:
                continue
            turns = round(raw.rotation / 90) % 4
            pixels = np.rot90(raw.to_ndarray(format="rgb24"), turns)
            colours = (raw.colorspace, raw.color_range, raw.color_trc, raw.color_primaries)
            yield Frame(number, time, np.ascontiguousarray(pixels, np.uint8), turns, colours)
            number += 1
        if not self.broken and self.duration is not None and self._last is not None:
            missing = min(self.end or self.duration, self.duration) - self._last
            if missing > max(0.5, 3 / float(self.rate)):
                self.broken = f"ends at {self._last:.2f} s, and states {self.duration:.2f} s"
        if self._last is None and not self.broken:
            self.broken = "has no frame that can be decoded"

    def _decoded(self) -> Iterator[av.VideoFrame]:
        """All frames from the key frame before `start` on; a damaged packet is counted, a damaged file ends them."""
        if self.start:
            self._container.seek(int((self.start + self.origin) / self.time_base), stream=self._stream)
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except self._av.error.FFmpegError as error:
                self.broken = reason_of(error)
                packet = None
            try:
                yield from self._stream.decode(packet)
            except self._av.error.EOFError:
                return
            except self._av.error.FFmpegError:
                self._damaged += 1
            if packet is None or packet.size == 0:  # the decoder is empty now
                return

    def _time_of(self, raw: av.VideoFrame) -> float:
        step = 1 / float(self.rate)
        time = None if raw.pts is None else float(raw.pts * (raw.time_base or self.time_base)) - self.origin
        if time is None or (self._last is not None and time <= self._last):
            self._made_up += 1
            time = 0.0 if self._last is None else self._last + step
        elif self._last is not None:
            taken = time - self._last
            shortest, longest = self._steps or (taken, taken)
            self._steps = min(shortest, taken), max(longest, taken)
        self._last = time
        return time

    def _duration(self) -> float | None:
        if self._stream.duration is not None:
            first = float((self._stream.start_time or 0) * self.time_base) - self.origin
            return float(self._stream.duration * self.time_base) + first
        return None if self._container.duration is None else self._container.duration / 1e6


def open_clip(av: ModuleType, path: Path) -> InputContainer:
    """Opens a file, and nothing else: a play list in it leads nowhere. Raises: UserError for what is no clip."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        container: InputContainer = av.open(f"file:{path}", options={"protocol_whitelist": "file"})
    except (av.error.FFmpegError, OSError, ValueError) as error:
        reason = reason_of(error)
        raise UserError(
            f"{path}: cannot be opened as a video ({reason}); cut short, or no video: record or copy it again"
        ) from None
    return container


def _video_stream(path: Path, container: InputContainer) -> VideoStream:
    """The stream that a player would show. A song's cover is no video. Raises: UserError."""
    cover = load_av().stream.Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not streams:
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise UserError(f"{path}: no video in it, but {kinds}; give a clip with a video")
    stream = streams[0]
    if stream.codec_context is None:
        raise UserError(f"{path}: its codec is unknown to this FFmpeg; convert it to H.264")
    if stream.width * stream.height > MAX_PIXELS:
        raise UserError(f"{path}: {stream.width}×{stream.height} (width × height) is more than {MAX_PIXELS} pixels")
    return stream
