"""Writes a clip like another one: its size, times, rotation flag and colours, and its sound as it is.

The video is H.264. The file gets its name when it is whole; until then it lies beside it, hidden.
"""

from __future__ import annotations

import contextlib
import math
from fractions import Fraction
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from model.inference.video_reader import ClipReader, Frame, load_av, open_clip
from pipeline.command import UserError, reason_of
from pipeline.files import publish

MARK = "people drawn by model.predict"  # the clip's comment
_CODECS = ("libx264", "mpeg4")  # the first that this FFmpeg has
_QUALITY = {"libx264": {"crf": "18", "preset": "veryfast"}, "mpeg4": {"qscale": "3"}}
_FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}
_IN_MP4 = {"aac", "mp3", "mp3float", "ac3", "eac3", "opus", "libopus", "alac", "flac"}  # sounds that players expect in an .mp4
_UNKNOWN_COLOUR = 2  # FFmpeg's number for what is not stated


def suffix_for(reader: ClipReader) -> str:
    """The ending of the written clip: the source's if it can hold H.264, else one that can hold the source's sound."""
    own = reader.path.suffix.lower()
    if own in (".mov", ".mkv"):
        return own
    return ".mp4" if set(sounds(reader)) <= _IN_MP4 else ".mkv"


def sounds(reader: ClipReader) -> list[str]:
    """The codecs of a clip's sound."""
    with open_clip(load_av(), reader.path) as container:
        return [stream.codec_context.name for stream in container.streams.audio if stream.codec_context is not None]


class ClipWriter:
    """A clip that is being written; use it in a `with` statement.

    Leaving it, by most errors too, ends the file, and gives it its name if it has a frame.

    Args:
      path: of the new clip; its ending is that of `suffix_for`.
      source: the clip that frames come from.

    Attributes:
      whole: whether all frames of the source come; if not, the sound ends with the last one.
    """

    def __init__(self, path: Path, source: ClipReader) -> None:
        self._av = load_av()
        self.path, self._source = path, source
        self._hidden = path.with_name(f".{path.name}.unfinished")
        self._stream: Any = None
        self._last = -(1 << 60)  # the time stamp of the last frame; each is later than the one before
        self._container = self._av.open(f"file:{self._hidden}", "w", format=_FORMATS[path.suffix])
        self._container.metadata["comment"] = MARK
        self._shift = max(source.start or 0.0, 0.0)  # the written clip starts at 0
        self._sound = _SoundCopy(self._av, source, self._container, self._shift)
        self.whole = True
        self._notes: list[str] = []

    @property
    def notes(self) -> list[str]:
        """What a person should know of the written clip."""
        return [*self._notes, *(f"sound that is left out: {reason}" for reason in self._sound.left_out)]

    def __enter__(self) -> ClipWriter:
        return self

    def add(self, frame: Frame, pixels: npt.NDArray[np.uint8]) -> None:
        """Adds a frame at its time.

        Args:
          frame: of the source.
          pixels: uint8 [h, w, 3], to be shown in its place; upright, as `Frame.pixels`.
        """
        stored = np.ascontiguousarray(np.rot90(pixels, -frame.turns))
        if self._stream is None:
            self._stream = self._new_stream(frame, stored.shape[0], stored.shape[1])
        if stored.shape[:2] != (self._stream.height, self._stream.width):
            raise UserError(f"{self._source.path}: its frames change their size at {frame.time:.2f} s; split it there")
        space, colour_range = frame.colours[:2]
        raw = self._av.VideoFrame.from_ndarray(stored, format="rgb24").reformat(
            format=self._stream.pix_fmt,
            dst_colorspace=None if space == _UNKNOWN_COLOUR else space,
            dst_color_range=colour_range or None,
        )
        raw.time_base = self._source.time_base
        raw.pts = self._last = max(round((frame.time - self._shift) / self._source.time_base), self._last + 1)
        self._container.mux(self._stream.encode(raw))
        self._sound.until(frame.time)

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        ended = False
        try:
            if self._stream is not None and kind is not KeyboardInterrupt:
                if self.whole and kind is None:
                    self._sound.until(math.inf if self._source.end is None else self._source.end)
                self._container.mux(self._stream.encode(None))
                self._container.close()
                ended = True
        finally:
            self._sound.close()
            if ended:
                publish(self._hidden, self.path)
            else:
                with contextlib.suppress(self._av.error.FFmpegError):  # it has no frame, or the disk is full
                    self._container.close()
                self._hidden.unlink(missing_ok=True)

    def _new_stream(self, frame: Frame, height: int, width: int) -> Any:
        codec = next((name for name in _CODECS if _has_encoder(self._av, name)), None)
        if codec is None:
            raise UserError(f"{self.path}: this FFmpeg has no encoder of {', '.join(_CODECS)}; --nodraw writes no clip")
        if codec != _CODECS[0]:
            self._notes.append(f"this FFmpeg has no {_CODECS[0]}: the clip is written as {codec}")
        stream = self._container.add_stream(codec, rate=self._source.rate, options=_QUALITY[codec])
        stream.width, stream.height = width, height
        odd = width % 2 or height % 2
        stream.pix_fmt = "yuv444p" if odd and codec == _CODECS[0] else "yuv420p"
        if odd:
            self._notes.append(f"{width}×{height} is odd: the clip is written as H.264 4:4:4, which some players do not show")
        context = stream.codec_context
        context.time_base = self._source.time_base
        context.sample_aspect_ratio = Fraction(self._source.aspect)
        context.colorspace, context.color_range, context.color_trc, context.color_primaries = frame.colours
        if frame.turns:
            stream.set_display_rotation(90 * frame.turns)
        self._sound.start()
        return stream


def _has_encoder(av: ModuleType, name: str) -> bool:
    try:
        av.Codec(name, "w")
    except (av.error.FFmpegError, ValueError):
        return False
    return True


class _SoundCopy:
    """Copies the packets of a clip's sound, in step with its frames.

    Args:
      source: the clip; it is opened a second time.
      target: the container that is written.
      shift: seconds of the source that the target leaves out at its start.
    """

    def __init__(self, av: ModuleType, source: ClipReader, target: Any, shift: float) -> None:
        self._av, self._target = av, target
        self._container = open_clip(av, source.path)
        self._origin, self._shift = source.origin, shift
        self._packets: Any = iter(())
        self._waiting: Any = None
        self._streams: dict[int, Any] = {}
        self.left_out: list[str] = []

    def start(self) -> None:
        """Announces the sound to the target, before its first packet."""
        chosen = []
        for stream in self._container.streams.audio:
            try:
                self._streams[stream.index] = self._target.add_stream_from_template(stream)
                chosen.append(stream)
            except (self._av.error.FFmpegError, ValueError) as error:
                self.left_out.append(reason_of(error))
        if chosen:
            if self._shift:
                self._container.seek(int((self._shift + self._origin) * 1_000_000))
            self._packets = self._container.demux(*chosen)

    def until(self, time: float) -> None:
        """Copies what is heard before `time`, in seconds of the source."""
        while (packet := self._next()) is not None:
            at = float((packet.pts or 0) * packet.time_base) - self._origin
            if at >= time:
                self._waiting = packet
                return
            if at < self._shift - 1e-6 and self._shift:
                continue
            moved = round((self._origin + self._shift) / packet.time_base)
            packet.pts = None if packet.pts is None else packet.pts - moved
            packet.dts = None if packet.dts is None else packet.dts - moved
            packet.stream = self._streams[packet.stream.index]
            self._target.mux(packet)

    def _next(self) -> Any:
        packet, self._waiting = self._waiting, None
        while packet is None or packet.size == 0:
            try:
                packet = next(self._packets, None)
            except self._av.error.FFmpegError:  # where the clip breaks off, its frames end, too
                return None
            if packet is None:
                return None
        return packet

    def close(self) -> None:
        self._container.close()
