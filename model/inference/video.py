"""Runs a model over the frames of a clip: `predictions.jsonl`, a line a frame, and the clip with its people drawn.

Files get their names when they are whole. After Ctrl-C they end with the last frame that was done.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time as clock
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from model.inference.drawing_style import DrawingStyle
from model.inference.people import People
from model.inference.predictor import Predictor
from model.inference.tracking import Tracker
from model.inference.video_reader import ClipReader, Frame, load_av, open_clip
from model.inference.video_writer import MARK, ClipWriter, suffix_for
from model.interrupt import Interrupt
from pipeline.command import Progress, UserError, counted, duration, say, shown
from pipeline.files import only_writer, publish

BATCH_SIZE = 8
_BYTES_AT_ONCE = 1 << 28  # of pixels that wait for the network


@dataclasses.dataclass(frozen=True)
class ClipSummary:
    """What a run over a clip did.

    Attributes:
      predictions: the file with a line per frame.
      clip: the drawn clip; None if nothing was drawn.
      frames, looked_at: frames that were read, and those of them that the model looked at.
      people: found in all frames together.
      identities: people that were told apart; None if nobody followed them.
      seconds: that the run took.
      notes: a line for all else that a person should know.
      broken: why the clip ended before its end; "" if it did not.
    """

    predictions: Path
    clip: Path | None
    frames: int
    looked_at: int
    people: int
    identities: int | None
    seconds: float
    notes: tuple[str, ...]
    broken: str

    def __str__(self) -> str:
        found = "1 person" if self.people == 1 else f"{self.people:,} people"
        first = f"{found} found in {counted(self.looked_at, 'frame')}"
        if self.looked_at < self.frames:
            first += f" of {self.frames:,}"
        if self.identities is not None:
            first += f", {counted(self.identities, 'identity', 'identities')}"
        speed = f"{self.frames / max(self.seconds, 1e-9):.1f} frames/s, {duration(self.seconds)}"
        lines = [first, speed, *self.notes, f"written: {self.predictions}"]
        if self.clip is not None:
            lines.append(f"written: {self.clip}")
        return "\n".join(shown(line) for line in lines)


def predict_clip(
    predictor: Predictor,
    path: Path,
    output_dir: Path,
    *,
    draw: bool = True,
    style: DrawingStyle | None = None,
    every: int = 1,
    start: float | None = None,
    end: float | None = None,
    batch_size: int = BATCH_SIZE,
    track: bool = False,
) -> ClipSummary:
    """Looks at the frames of a clip.

    Args:
      predictor: the model.
      path: of the clip.
      output_dir: gets `predictions.jsonl`, and the drawn clip under the clip's name.
      draw: whether to write the drawn clip; if not, that of an earlier run is removed.
      style: of the drawing.
      every: looks at each frame whose number is a multiple of it; the frames between show the people of the last one.
      start, end: seconds of the clip, between which frames are read.
      batch_size: frames that the network sees at once, at most.
      track: whether people get numbers (`track_id`) that they keep from frame to frame.

    Raises:
      UserError: no clip, or the drawn one would replace it; another process writes there.
      InterruptedWorkError: after Ctrl-C; the files are whole.
    """
    started = clock.monotonic()
    predictor = dataclasses.replace(predictor, max_batch=min(batch_size, predictor.max_batch))
    tracker = Tracker(predictor.skeleton) if track else None
    work = _Work(predictor, style or DrawingStyle(), every, tracker)
    with ClipReader(path, start, end) as reader, only_writer(output_dir, "prediction"):
        drawn = output_dir / f"{path.stem}{suffix_for(reader)}"
        if draw and drawn.exists() and drawn.samefile(path):
            raise UserError(f"--output_dir={output_dir}: the drawn clip would replace --input={path}; give another folder")
        removed = not draw and _remove_drawn(drawn)
        with (
            Interrupt("predict: ending the files, then stopping") as interrupt,
            Lines(output_dir / "predictions.jsonl") as lines,
            ClipWriter(drawn, reader) if draw else contextlib.nullcontext() as writer,
            Progress(reader.expected, "predict", "frame") as progress,
        ):
            for frames in _chunks(reader.frames(), every, batch_size):
                work.run(frames, lines, writer)
                progress.advance(len(frames))
                if interrupt.asked:
                    break
            if writer is not None:
                writer.whole = not interrupt.asked
        summary = ClipSummary(
            predictions=output_dir / "predictions.jsonl",
            clip=drawn if draw and work.frames else None,
            frames=work.frames,
            looked_at=work.looked_at,
            people=work.people,
            identities=None if tracker is None else tracker.count,
            seconds=clock.monotonic() - started,
            notes=_notes(reader, writer, every, drawn if removed else None),
            broken="" if interrupt.asked else reader.broken,
        )
        if interrupt.asked:
            for line in str(summary).splitlines():
                say(line)
            of = "" if reader.expected is None else f" of about {reader.expected}"
            raise interrupt.error(f"stopped after {work.frames}{of} frames; the files end there, and are whole")
    return summary


def _notes(reader: ClipReader, writer: ClipWriter | None, every: int, removed: Path | None) -> tuple[str, ...]:
    """What the summary says beside its figures."""
    notes = [*reader.notes, *(writer.notes if writer is not None else ())]
    if removed is not None:
        notes.append(f"removed: {removed}, of an earlier run")
    if every > 1 and writer is not None:
        notes.append(f"frames between those looked at show the people of the last one (--every={every})")
    return tuple(notes)


class _Work:
    """One run over a clip, frame by frame."""

    def __init__(self, predictor: Predictor, style: DrawingStyle, every: int, tracker: Tracker | None) -> None:
        self._predictor, self._style, self._every, self._tracker = predictor, style, every, tracker
        self._shown: tuple[People, list[str] | None] | None = None  # who was found last
        self.frames = self.looked_at = self.people = 0

    def run(self, frames: Sequence[Frame], lines: Lines, writer: ClipWriter | None) -> None:
        """Looks at some frames, and writes all of them."""
        chosen = [frame for frame in frames if frame.index % self._every == 0]
        found = {f.index: people for f, people in zip(chosen, self._predictor([f.pixels for f in chosen]), strict=True)}
        for frame in frames:
            people = found.get(frame.index)
            if people is not None:
                numbers = None if self._tracker is None else self._tracker.update(frame.time, people)
                lines.add(frame, people, numbers)
                self._shown = people, None if numbers is None else [f"#{number}" for number in numbers]
                self.looked_at, self.people = self.looked_at + 1, self.people + len(people)
            if writer is not None:
                assert self._shown is not None  # the first frame is looked at
                writer.add(frame, self._style.draw(frame.pixels, *self._shown))
        self.frames += len(frames)


class Lines:
    """`predictions.jsonl`, which gets its name when it is whole; use it in a `with` statement."""

    def __init__(self, path: Path) -> None:
        self._path, self._hidden = path, path.with_name(f".{path.name}.unfinished")

    def __enter__(self) -> Lines:
        self._file = self._hidden.open("w")
        return self

    def add(self, frame: Frame, people: People, numbers: Sequence[int] | None) -> dict[str, Any]:
        """Adds a frame's line, and returns what it says; the people's `image_id` is the number of the frame."""
        entries = people.to_coco(frame.index)
        for entry, number in zip(entries, numbers or (), strict=numbers is not None):
            entry["track_id"] = number
        line = {"frame": frame.index, "time": round(frame.time, 6), "people": entries}
        self._file.write(json.dumps(line) + "\n")
        return line

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._file.close()
            if kind is None or issubclass(kind, UserError):
                publish(self._hidden, self._path)
        finally:
            self._hidden.unlink(missing_ok=True)


def _chunks(frames: Iterator[Frame], every: int, batch_size: int) -> Iterator[list[Frame]]:
    """Frames in groups with `batch_size` of those to look at, or fewer where they are large."""
    chunk: list[Frame] = []
    chosen = held = 0
    for frame in frames:
        look = frame.index % every == 0
        if chunk and ((look and chosen == batch_size) or held + frame.pixels.nbytes > _BYTES_AT_ONCE):
            yield chunk
            chunk, chosen, held = [], 0, 0
        chunk.append(frame)
        chosen, held = chosen + look, held + frame.pixels.nbytes
    if chunk:
        yield chunk


def _remove_drawn(path: Path) -> bool:
    """Removes a clip that an earlier run has drawn, and nothing else."""
    if not path.is_file():
        return False
    try:
        with open_clip(load_av(), path) as container:
            drawn = container.metadata.get("comment") == MARK
    except UserError:
        return False
    if drawn:
        path.unlink()
    return drawn
