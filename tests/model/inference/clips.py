"""Small clips, written and read with PyAV itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

SAMPLES = 16_000  # of the sound, a second
SQUARE = 16  # pixels of the white square's side


def square_at(number: int, height: int, width: int) -> tuple[int, int]:
    """The upper left corner, x and y, of a white square that wanders through the frames."""
    return 4 + 2 * number % (width - SQUARE - 4), 6 + number % (height - SQUARE - 6)


def square_frame(number: int, height: int, width: int) -> NDArray[np.uint8]:
    pixels = np.full((height, width, 3), 40, np.uint8)
    x, y = square_at(number, height, width)
    pixels[y : y + SQUARE, x : x + SQUARE] = 250
    return pixels


def write_clip(
    path: Path,
    frames: Iterable[NDArray[np.uint8]],
    *,
    rate: int = 25,
    milliseconds: Sequence[int] | None = None,
    turns: int = 0,
    sound: bool = True,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
) -> Path:
    """Writes a clip.

    Args:
      frames: upright; uint8 [h, w, 3].
      milliseconds: of each frame; by default by the rate.
      turns: quarter turns, counterclockwise, that a player has to make.
      options: of the container.
    """
    with av.open(str(path), "w", options=options or {}) as container:
        video: Any = container.add_stream(codec, rate=rate, options={"crf": "12", "g": "10"})
        if turns:
            video.set_display_rotation(90 * turns)
        tone: Any = container.add_stream("aac", rate=SAMPLES, layout="mono") if sound else None
        heard = 0
        for number, pixels in enumerate(frames):
            stored = np.ascontiguousarray(np.rot90(pixels, -turns))
            if number == 0:
                video.height, video.width = stored.shape[:2]
                video.pix_fmt, video.codec_context.time_base = pix_fmt, Fraction(1, 1000)
            frame = av.VideoFrame.from_ndarray(stored)
            frame.time_base = Fraction(1, 1000)
            frame.pts = milliseconds[number] if milliseconds else round(1000 * number / rate)
            container.mux(video.encode(frame))
            while tone is not None and heard < (number + 1) * SAMPLES // rate:
                wave = np.sin(np.arange(heard, heard + 1024) / 6).astype(np.float32)[None]
                samples = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
                samples.sample_rate, samples.pts, samples.time_base = SAMPLES, heard, Fraction(1, SAMPLES)
                container.mux(tone.encode(samples))
                heard += 1024
        container.mux(video.encode(None))
        if tone is not None:
            container.mux(tone.encode(None))
    return path


def square_clip(path: Path, count: int = 20, height: int = 64, width: int = 96, **more: Any) -> Path:
    return write_clip(path, (square_frame(number, height, width) for number in range(count)), **more)


@dataclasses.dataclass(frozen=True)
class Read:
    """What PyAV reads of a clip: sizes as stored, `pixels` [n, h, w, 3] as stored, times in seconds."""

    size: tuple[int, int]
    rate: Fraction
    rotation: int
    times: list[float]
    pixels: NDArray[np.uint8]
    sound: list[bytes]
    sound_times: list[float]
    colours: tuple[int, int]


def read_clip(path: Path) -> Read:
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        frames = list(container.decode(video))
        size, rate = (video.height, video.width), Fraction(video.guessed_rate or 0)
    sound: list[bytes] = []
    sound_times: list[float] = []
    with av.open(str(path)) as container:
        if container.streams.audio:
            for packet in container.demux(container.streams.audio[0]):
                if packet.size:
                    sound.append(bytes(packet))
                    sound_times.append(float((packet.pts or 0) * packet.time_base))
    return Read(
        size,
        rate,
        frames[0].rotation,
        [float(frame.time) for frame in frames],
        np.stack([np.asarray(frame.to_ndarray(format="rgb24")) for frame in frames]),
        sound,
        sound_times,
        (frames[0].colorspace, frames[0].color_range),
    )
