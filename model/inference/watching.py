"""Runs a model on what a camera sees now: a live page, and `predictions.jsonl` with a line per image that was looked at."""

from __future__ import annotations

import dataclasses
import io
import time as clock
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from model.inference.camera import Camera
from model.inference.drawing_style import DrawingStyle
from model.inference.live_page import LivePage
from model.inference.predictor import Predictor
from model.inference.tracking import Tracker
from model.inference.video import Lines
from model.interrupt import Interrupt
from pipeline.command import Progress, UserError, counted, say, shown
from pipeline.files import only_writer

_SECONDS_BETWEEN_LOOKS = 0.5  # for Ctrl-C, while no image comes
_RATE_MEMORY = 0.9  # share of the older speed in the one that the page shows


@dataclasses.dataclass(frozen=True)
class WatchSummary:
    """What was seen: images that came, those of them that were looked at, and the people in these."""

    predictions: Path
    came: int
    looked_at: int
    people: int
    identities: int | None

    def __str__(self) -> str:
        found = "1 person" if self.people == 1 else f"{self.people:,} people"
        first = f"{found} found in {counted(self.looked_at, 'image')} of the {self.came:,} that came"
        if self.identities is not None:
            first += f", {counted(self.identities, 'identity', 'identities')}"
        return "\n".join(shown(line) for line in (first, f"written: {self.predictions}"))


def watch(
    predictor: Predictor,
    source: str,
    output_dir: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    style: DrawingStyle | None = None,
    seconds: float | None = None,
    track: bool = False,
) -> WatchSummary:
    """Looks at the newest image of a camera, again and again, until the camera ends or Ctrl-C is pressed.

    Args:
      predictor: the model.
      source: of the images, as `Camera` takes it.
      output_dir: gets `predictions.jsonl`, when the work ends.
      host, port: of the live page.
      style: of the drawing.
      seconds: after which the work ends; None: never.
      track: whether people get numbers (`track_id`) that they keep from image to image.

    Raises:
      UserError: no such camera, the camera breaks off, or another process writes there.
    """
    style = style or DrawingStyle()
    tracker = Tracker(predictor.skeleton) if track else None
    looked_at = people_found = 0
    rate, index = 0.0, -1
    with (
        only_writer(output_dir, "prediction"),
        Camera(source) as camera,
        LivePage(host, port) as page,
        Interrupt("predict: ending the file, then stopping") as interrupt,
        Lines(output_dir / "predictions.jsonl") as lines,
        Progress(None, "watch", "image") as progress,
    ):
        reach = "for this machine alone" if page.only_this_machine else "for everybody who reaches this machine"
        say(f"live at {page.url}, {reach}; Ctrl-C ends it")
        last = clock.monotonic()
        while not interrupt.asked:
            frame = camera.newest(index, _SECONDS_BETWEEN_LOOKS)
            if frame is None:
                if camera.ended:
                    break
                continue
            if seconds is not None and frame.time >= seconds:
                break
            people = predictor(frame.pixels)
            numbers = None if tracker is None else tracker.update(frame.time, people)
            entries = lines.add(frame, people, numbers)
            labels = None if numbers is None else [f"#{number}" for number in numbers]
            now = clock.monotonic()
            newest_rate, last = 1 / max(now - last, 1e-6), now
            rate = newest_rate if looked_at < 2 else _RATE_MEMORY * rate + (1 - _RATE_MEMORY) * newest_rate
            page.show(_jpeg(style.draw(frame.pixels, people, labels)), {**entries, "rate": rate})
            index, looked_at, people_found = frame.index, looked_at + 1, people_found + len(people)
            progress.advance(1, note=f"{len(people)} people")
    summary = WatchSummary(
        output_dir / "predictions.jsonl", camera.came, looked_at, people_found, None if tracker is None else tracker.count
    )
    if camera.error:
        for line in str(summary).splitlines():
            say(line)
        raise UserError(f"--input={source}: the camera has broken off ({camera.error}); what came before is written")
    return summary


def _jpeg(pixels: npt.NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=85)
    return file.getvalue()
