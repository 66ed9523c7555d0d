"""Runs a model over image files: `predictions.json` in COCO's results format, and every image with its people drawn.

Answers appear as they are made, one line an image, in `predictions.unfinished.jsonl`. `predictions.json` is written when all
images are done, and takes its place; a run that was stopped goes on from it.

Three things happen at once: while the network looks at some images, the next ones are read, and those before are drawn.
"""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from model.inference import drawings as drawings_lib
from model.inference.coco_format import Result
from model.inference.drawing_style import DrawingStyle
from model.inference.image_input import image_size, read_image_file, shown_pixels
from model.inference.image_names import NumberedImage, numbered
from model.inference.people import People
from model.inference.predictor import Predictor
from model.inference.unfinished import Done, Unfinished
from pipeline import image
from pipeline.command import Progress, UserError, counted, reason_of, shown
from pipeline.files import only_writer, write_json

SUFFIXES = (".jpg", ".jpeg", ".png")
FILES_AT_ONCE = 16  # and BYTES_AT_ONCE bound the memory, and what is lost when a process is killed
BYTES_AT_ONCE = 1 << 27
NAMED = 5  # of the files that are passed over

Chunk = list[tuple[NumberedImage, bytes | UserError]]  # images and their files' bytes, or why a file cannot be read


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a run did.

    Attributes:
      predictions: the file with one entry per person.
      drawings: the folder of drawn images; None if nothing was drawn.
      crops: the folder of cut out people; None if nobody was cut out.
      images, people, empty: images looked at, people found, images in which nobody was.
      unreadable: a sentence for each image that could not be read.
      category: what the model finds.
      best_score: of all images; None if the model found nobody above its own least score.
      threshold: people below this score were left out.
      reused: images whose people were found by an earlier run, which was stopped.
      notes: a line for all else that a person should know.
    """

    predictions: Path
    drawings: Path | None
    images: int
    people: int
    empty: int
    unreadable: tuple[str, ...]
    category: str = "person"
    best_score: float | None = None
    threshold: float = 0.0
    reused: int = 0
    notes: tuple[str, ...] = ()
    crops: Path | None = None


def image_files(path: Path, flag: str = "--input") -> list[Path]:
    """The images of a folder, sorted by name; or the one file. `flag` gave it.

    Raises:
      UserError: nothing there, or no image in it.
    """
    return list(look_into(path, flag)[0])


def look_into(path: Path, flag: str = "--input", *, may_be_empty: bool = False) -> tuple[list[Path], list[str]]:
    """As `image_files`, and a line for each kind of entry of the folder that is passed over.

    Args:
      may_be_empty: whether a folder without images is none that is wrong, as its folders may hold them.

    Raises:
      UserError: nothing there, or no image in it.
    """
    if path.is_file():
        return [path], []
    if not path.is_dir():
        what = "neither a file nor a folder" if path.exists() else "no such file or folder"
        raise UserError(f"{flag}={path}: {what}; give an image, or a folder of {', '.join(SUFFIXES)}")
    files: list[Path] = []
    passed_over: dict[str, list[str]] = {}
    for entry in sorted(path.iterdir()):
        if entry.is_dir():
            passed_over.setdefault("folders (only the files of the folder itself are read)", []).append(entry.name)
        elif entry.name.startswith("."):
            passed_over.setdefault("hidden files", []).append(entry.name)
        elif entry.suffix.lower() not in SUFFIXES:
            passed_over.setdefault(f"files whose names do not end in {', '.join(SUFFIXES)}", []).append(entry.name)
        elif not entry.is_file():
            passed_over.setdefault("entries that are no files (broken links, FIFOs, devices)", []).append(entry.name)
        else:
            files.append(entry)
    notes = [f"passed over: {len(names)} {kind}: {some_of(names)}" for kind, names in passed_over.items()]
    if not files and not may_be_empty:
        raise UserError(f"{flag}={path}: no images in it; their names must end in {', '.join([*SUFFIXES, *notes])}")
    return files, notes


def some_of(names: Sequence[str]) -> str:
    """The first of many names, and how many more there are."""
    return ", ".join(names[:NAMED]) + (f", and {len(names) - NAMED} more" if len(names) > NAMED else "")


def predict_files(
    predictor: Predictor,
    files: Sequence[Path] | Sequence[NumberedImage],
    output_dir: Path,
    *,
    draw: bool = True,
    crop: bool = False,
    style: DrawingStyle | None = None,
    notes: Sequence[str] = (),
) -> Summary:
    """Looks at every file. One that cannot be read is left out, and named in the summary.

    Args:
      predictor: the model.
      files: JPEG or PNG images; as paths they are numbered by `image_names.numbered`.
      output_dir: gets `predictions.json` and `pictures/<file name>`.
      draw: whether to write the latter; if not, drawings of an earlier run are removed.
      crop: whether to write `crops/<file name without its ending>_<n>.jpg` (or .png), what the box of the n-th person holds.
      style: of the drawings.
      notes: go with the summary.

    Raises:
      UserError: a drawing would replace one of the files; another process writes there.
    """
    images, rule = [one for one in files if isinstance(one, NumberedImage)], ""
    if len(images) < len(files):
        images, rule = numbered([one for one in files if isinstance(one, Path)])
    drawings = output_dir / "pictures"
    if draw and drawings.resolve() in {one.path.resolve().parent for one in images}:
        raise UserError(
            f"--output_dir={output_dir}: drawings go to {drawings}, where they would replace the images of --input; "
            "give another folder, or --nodraw"
        )
    with only_writer(output_dir, "prediction"):
        work = _Work(predictor, drawings if draw else None, output_dir / "crops" if crop else None, style or DrawingStyle())
        identity = predictor.identity and f"{predictor.identity}, people from {predictor.score_threshold}, {style}"
        with Unfinished(output_dir / "predictions.unfinished.jsonl", identity) as unfinished:
            work.run(images, unfinished)
            results = work.results(images, unfinished)
            write_json(output_dir / "predictions.json", results)
            unfinished.remove()
        removed = drawings_lib.remove_others(drawings, {one.file_name for one in images} if draw else set())
        crops = {name for one in images if crop for name in work.crop_names(one, unfinished)}
        removed += drawings_lib.remove_others(output_dir / "crops", crops)
    told = [rule, f"removed: {removed} drawings of an earlier run" if removed else "", *work.notes, *notes]
    seen = [unfinished.done[one.file_name] for one in images if one.file_name in unfinished.done]
    return Summary(
        predictions=output_dir / "predictions.json",
        drawings=drawings if draw else None,
        images=len(images) - len(work.unreadable),
        people=len(results),
        empty=sum(not one.people for one in seen),
        unreadable=tuple(work.unreadable),
        category=", ".join(name for _, name in predictor.skeleton.classes) or predictor.skeleton.category,
        best_score=max((one.best_score for one in seen if one.best_score is not None), default=None),
        threshold=predictor.score_threshold,
        reused=work.reused,
        notes=tuple(note for note in told if note),
        crops=output_dir / "crops" if crop else None,
    )


class _Work:
    """One run over a folder.

    Args:
      predictor: the model.
      drawings: the folder that drawn images go to; None: nothing is drawn.
      crops: the folder that cut out people go to; None: nobody is cut out.
      style: of the drawings.
    """

    def __init__(self, predictor: Predictor, drawings: Path | None, crops: Path | None, style: DrawingStyle) -> None:
        self._threshold = predictor.score_threshold
        self._predictor = dataclasses.replace(predictor, score_threshold=0.0)  # the best score is told, even if it is too low
        self._drawings, self._crops, self._style = drawings, crops, style
        self._stored = self._undrawn = 0
        self.unreadable: list[str] = []
        self.reused = 0

    @property
    def notes(self) -> list[str]:
        notes = []
        if self.reused:
            notes.append(f"{counted(self.reused, 'image')} done by an earlier run")
        if self._stored:
            notes.append(f"{counted(self._stored, 'image')} annotated as stored, not as a viewer shows it: answered likewise")
        if self._undrawn:
            notes.append(f"{counted(self._undrawn, 'image')} not drawn, whose name is too long for a drawing")
        return notes

    def run(self, images: Sequence[NumberedImage], unfinished: Unfinished) -> None:
        """Looks at all images that `unfinished` does not have yet, and adds them."""
        todo = [one for one in images if not self._is_done(one, unfinished)]
        self.reused = len(images) - len(todo)
        # One thread reads the next images, one draws and notes those before, in their order. If this one is stopped, both end
        # what they have begun.
        with (
            Progress(len(images), "predict", "image", done=self.reused) as progress,
            ThreadPoolExecutor(1, "reader") as reader,
            ThreadPoolExecutor(1, "drawer") as drawer,
        ):
            chunks, drawn = _chunks(todo), _Drawing([], 0)
            following = reader.submit(next, chunks, None)
            while (chunk := following.result()) is not None:
                following = reader.submit(next, chunks, None)
                self.unreadable += [str(content) for _, content in chunk if isinstance(content, UserError)]
                readable = [(one, content) for one, content in chunk if isinstance(content, bytes)]
                stored = [_annotated_as_stored(one, content) for one, content in readable]
                self._stored += sum(stored)
                found = self._predict(readable, stored)
                drawn.wait(progress)
                drawn = _Drawing(
                    [
                        drawer.submit(self._finish, one, content, people, is_stored, unfinished)
                        for (one, content), people, is_stored in zip(readable, found, stored, strict=True)
                        if people is not None
                    ],
                    len(chunk),
                )
            drawn.wait(progress)

    def results(self, images: Sequence[NumberedImage], unfinished: Unfinished) -> list[Result]:
        """The people of all images in their order, in COCO's results format."""
        return [
            {"image_id": one.image_id, "file_name": one.file_name, **person}
            for one in images
            for person in (unfinished.done[one.file_name].people if one.file_name in unfinished.done else ())
        ]

    def _is_done(self, one: NumberedImage, unfinished: Unfinished) -> bool:
        done = unfinished.done.get(one.file_name)
        if done is None or done.state != _state(one):
            unfinished.done.pop(one.file_name, None)
            return False
        written = [] if self._drawings is None else [drawings_lib.place(self._drawings, one.file_name)]
        if self._crops is not None:
            written += [drawings_lib.place(self._crops, name) for name in self.crop_names(one, unfinished)]
        return all(path.exists() for path in written)

    def crop_names(self, one: NumberedImage, unfinished: Unfinished) -> list[str]:
        """The names of the cut out people of an image that is done."""
        return (
            drawings_lib.crop_names(one.file_name, len(unfinished.done[one.file_name].people))
            if (one.file_name in unfinished.done)
            else []
        )

    def _predict(self, images: Sequence[tuple[NumberedImage, bytes]], stored: Sequence[bool]) -> list[People | None]:
        """All at once; if one of them cannot be read, one by one, and None for that one."""
        contents, names = [content for _, content in images], [str(one.path) for one, _ in images]
        try:
            return list(self._predictor.predict(contents, names, as_stored=stored))
        except (UserError, tf.errors.InvalidArgumentError):
            found: list[People | None] = []
            for content, name, is_stored in zip(contents, names, stored, strict=True):
                try:
                    found += self._predictor.predict([content], [name], as_stored=is_stored)
                except UserError as error:
                    self.unreadable.append(str(error))
                    found.append(None)
                except tf.errors.InvalidArgumentError as error:
                    self.unreadable.append(f"{name}: the model refuses it ({reason_of(error)}); replace or remove it")
                    found.append(None)
            return found

    def _finish(self, one: NumberedImage, content: bytes, people: People, is_stored: bool, unfinished: Unfinished) -> None:
        best = float(people.scores.max()) if len(people) else None
        people = people.at_least(self._threshold)
        if self._drawings is not None or self._crops is not None:
            self._write(one, shown_pixels(content, str(one.path), as_stored=is_stored), people)
        entries = people.to_coco(one.image_id)
        for entry in entries:
            del entry["image_id"]  # numbers are given at the end, when all files are known
        unfinished.add(one.file_name, Done(_state(one), best, entries))

    def _write(self, one: NumberedImage, pixels: npt.NDArray[np.uint8], people: People) -> None:
        """Writes an image with its people, and each of them cut out of it."""
        try:
            if self._drawings is not None:
                drawings_lib.write(drawings_lib.place(self._drawings, one.file_name), self._style.draw(pixels, people))
            if self._crops is not None:
                for name, box in zip(drawings_lib.crop_names(one.file_name, len(people)), people.boxes, strict=True):
                    drawings_lib.write(drawings_lib.place(self._crops, name), drawings_lib.cut_out(pixels, box))
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            self._undrawn += 1


@dataclasses.dataclass(frozen=True)
class _Drawing:
    """Images that are being drawn and noted: `images` of them, and those that cannot be read."""

    futures: Sequence[Future[None]]
    images: int

    def wait(self, progress: Progress) -> None:
        """Waits until all are done. Raises: what drawing one of them raised."""
        for future in self.futures:
            future.result()
        progress.advance(self.images)


def _chunks(images: Sequence[NumberedImage]) -> Iterator[Chunk]:
    """Some images at a time with their files' bytes."""
    chunk: Chunk = []
    held = 0
    for one in images:
        content: bytes | UserError
        try:
            content = _read(one)
            held += len(content)
        except UserError as error:
            content = error
        chunk.append((one, content))
        if len(chunk) == FILES_AT_ONCE or held > BYTES_AT_ONCE:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def _read(one: NumberedImage) -> bytes:
    """An image's bytes. Raises: UserError."""
    return read_image_file(one.path) if one.found is None or one.found.read is None else one.found.read()


def _state(one: NumberedImage) -> tuple[int, int]:
    """Size and time of change: another state is another image."""
    if one.found is not None and one.found.state is not None:
        return one.found.state
    try:
        status = one.path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _annotated_as_stored(one: NumberedImage, content: bytes) -> bool:
    """Whether the annotations give the image the size of its stored pixels, and not the one in which a viewer shows it."""
    if one.size is None or not image.swaps_sides(image.stored_orientation(content)):
        return False
    try:
        stored = image_size(content, str(one.path))
    except UserError:
        return False
    return one.size == stored and one.size != stored[::-1]


def summary_text(summary: Summary) -> str:
    """What to print at the end of a run."""
    is_person = summary.category == "person"
    what = ("person" if summary.people == 1 else "people") if is_person else f"of the category {summary.category!r}"
    first = f"{summary.people} {what} found in {summary.images} image{'' if summary.images == 1 else 's'}"
    if summary.people and summary.empty:
        first += f", {'nobody' if is_person else 'none'} in {summary.empty} of them"
    elif not summary.people and summary.images:
        threshold = f"--score_threshold={summary.threshold:g}"
        found = (
            f"nothing has a score above the model's own least score (inference.score_threshold), and {threshold}"
            if summary.best_score is None
            else f"the best score is {summary.best_score:.3f}, below {threshold}"
        )
        first += f": {found}"
    lines = [first, *summary.notes, f"written: {summary.predictions}"]
    if summary.drawings is not None:
        lines.append(f"written: {summary.drawings}/ ({summary.images} drawn image{'' if summary.images == 1 else 's'})")
    if summary.crops is not None:
        lines.append(f"written: {summary.crops}/ ({counted(summary.people, 'cut out person', 'cut out people')})")
    lines += [f"left out: {sentence}" for sentence in summary.unreadable]
    return "\n".join(shown(line) for line in lines)
