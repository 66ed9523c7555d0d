"""Writes a rendered data set in COCO's layout: `annotations/person_keypoints_<split>.json` and the images in `<split>/`.

The JSON is the last thing to get its final name: where it stands, everything is there.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import re
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from pipeline.command import Progress, UserError, counted
from pipeline.synthetic.poses import PERSON_CATEGORY
from pipeline.synthetic.rendering import MAX_SIDE, MIN_SIDE, render_image

GENERATOR = "pipeline.synthetic"
VERSION = 1  # of the rendering: count up when the same arguments give other images
_CHUNK = 16  # images that a worker renders before it answers


@dataclasses.dataclass(frozen=True)
class Arguments:
    """All that the bytes depend on."""

    num_images: int
    seed: int
    split: str
    width: int
    height: int

    def __post_init__(self) -> None:
        if self.num_images <= 0:
            raise UserError(f"--num_images={self.num_images}: at least 1 image must be rendered")
        if self.seed < 0:
            raise UserError(f"--seed={self.seed}: the seed is a number from 0 up")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", self.split) or self.split == "annotations":
            raise UserError(f"--split={self.split!r}: a split is named with letters, digits, _ and -, such as train or val")
        for name, side in (("width", self.width), ("height", self.height)):
            if not MIN_SIDE <= side <= MAX_SIDE:
                raise UserError(f"--{name}={side}: a side has {MIN_SIDE} to {MAX_SIDE} pixels")


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a data set holds, and where. `reused` tells that it was found finished."""

    annotations: Path
    image_folder: Path
    images: int
    persons: int
    persons_with_keypoints: int
    keypoints: int
    hidden_keypoints: int
    crowds: int
    empty_images: int
    reused: bool

    def __str__(self) -> str:
        return (
            f"{counted(self.images, 'image')} ({self.empty_images} with nobody), {counted(self.persons, 'person')} "
            f"({self.persons_with_keypoints} with keypoints), {counted(self.keypoints, 'labelled keypoint')} "
            f"({self.hidden_keypoints} hidden), {counted(self.crowds, 'crowd')}"
        )


def write_dataset(output_dir: str | Path, arguments: Arguments, *, num_workers: int, overwrite: bool = False) -> Summary:
    """Renders a split, or finds it finished.

    Args:
      output_dir: gets `annotations/person_keypoints_<split>.json` and `<split>/`; other splits in it stay.
      arguments: what to render.
      num_workers: processes that render; the bytes do not depend on it.
      overwrite: replaces a split that was rendered with other arguments.

    Raises:
      UserError: the split is there with other arguments, or its names are taken by something not rendered here.
    """
    if num_workers <= 0:
        raise UserError(f"--num_workers={num_workers}: at least 1 process must render")
    folder = Path(output_dir)
    annotations, image_folder = folder / "annotations" / f"person_keypoints_{arguments.split}.json", folder / arguments.split
    finished = _find_finished(annotations, image_folder, arguments, overwrite)
    if finished is not None:
        return _summarize(finished, annotations, image_folder, reused=True)

    partial, partial_json = folder / f".{arguments.split}.partial", annotations.with_name(f".{annotations.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was cut off
    partial.mkdir(parents=True)
    annotations.parent.mkdir(exist_ok=True)
    try:
        dataset = _render_all(partial, arguments, num_workers)
        partial_json.write_text(json.dumps(dataset, separators=(",", ":")), encoding="utf-8")
        annotations.unlink(missing_ok=True)
        if image_folder.exists():
            shutil.rmtree(image_folder)
        partial.rename(image_folder)
        partial_json.rename(annotations)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        partial_json.unlink(missing_ok=True)
        raise
    return _summarize(dataset, annotations, image_folder, reused=False)


def _find_finished(annotations: Path, image_folder: Path, arguments: Arguments, overwrite: bool) -> dict[str, Any] | None:
    """The finished data set with these arguments; None if it is to be rendered. Refuses what must not be replaced."""
    for path in (annotations.parent.parent, annotations.parent, image_folder):
        if path.exists() and not path.is_dir():
            raise UserError(f"{path}: must be a folder or not exist; choose another --output_dir")
    if any(not re.fullmatch(r"\d{12}\.jpg", name) for name in _names_in(image_folder)):
        raise UserError(f"{image_folder}: holds files that {GENERATOR} has not written; choose another --output_dir or --split")
    if not annotations.exists():
        # Without its JSON a folder of rendered images may be what a crash left in the middle of the two renames.
        if _names_in(image_folder) and not overwrite:
            raise UserError(f"{image_folder}: holds images without {annotations.name}; --overwrite replaces them")
        return None
    try:
        dataset = json.loads(annotations.read_text(encoding="utf-8"))
        made_by, made_with = dataset["info"]["generator"], dict(dataset["info"]["arguments"])
    except (ValueError, KeyError, TypeError):
        made_by, made_with, dataset = None, {}, {}
    if made_by != GENERATOR:
        raise UserError(f"{annotations}: was not written by {GENERATOR}; choose another --output_dir or --split")
    wanted = _recorded(arguments)
    if made_with == wanted:
        present = _names_in(image_folder)
        # Deleted images are rendered again: the same arguments give the same bytes.
        return dataset if present == {image["file_name"] for image in dataset["images"]} else None
    if not overwrite:
        other = ", ".join(
            f"{key}={made_with.get(key)} (now {value})" for key, value in wanted.items() if made_with.get(key) != value
        )
        raise UserError(f"{annotations}: was rendered with {other}; --overwrite replaces it, another --output_dir keeps it")
    return None


def _names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def _recorded(arguments: Arguments) -> dict[str, Any]:
    return {**dataclasses.asdict(arguments), "version": VERSION}


def _render_all(folder: Path, arguments: Arguments, num_workers: int) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    with Progress(arguments.num_images, f"{arguments.split} images", "image") as progress:
        for chunk in _rendered_chunks(folder, arguments, num_workers):
            for persons in chunk:
                image_id = len(images) + 1
                images.append(
                    {
                        "id": image_id,
                        "file_name": _file_name(image_id),
                        "width": arguments.width,
                        "height": arguments.height,
                        "license": 1,
                    }
                )
                for person in persons:
                    annotations.append({"id": len(annotations) + 1, "image_id": image_id, **person})
            progress.advance(len(chunk))
    return {
        "info": {
            "description": "Rendered people with COCO keypoints",
            "generator": GENERATOR,
            "arguments": _recorded(arguments),
        },
        "licenses": [{"id": 1, "name": "CC0 1.0", "url": "https://creativecommons.org/publicdomain/zero/1.0/"}],
        "categories": [dict(PERSON_CATEGORY)],
        "images": images,
        "annotations": annotations,
    }


def _rendered_chunks(folder: Path, arguments: Arguments, num_workers: int) -> Iterator[list[tuple[dict[str, Any], ...]]]:
    """The annotations of all images, in order, as the images get written."""
    starts = range(0, arguments.num_images, _CHUNK)
    num_workers = min(num_workers, len(starts))
    jobs = [(folder, arguments, start) for start in starts]
    if num_workers == 1:
        yield from map(_render_chunk, jobs)
        return
    # "spawn", because a caller with TensorFlow's threads must not fork. Workers leave Ctrl-C to this process.
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(
        num_workers, mp_context=context, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)
    )
    try:
        yield from executor.map(_render_chunk, jobs)
    except BrokenProcessPool:
        raise UserError(f"--num_workers={num_workers}: a worker was killed, perhaps for want of memory; try fewer") from None
    finally:
        executor.shutdown(cancel_futures=True)


def _render_chunk(job: tuple[Path, Arguments, int]) -> list[tuple[dict[str, Any], ...]]:
    folder, arguments, start = job
    chunk = []
    for index in range(start, min(start + _CHUNK, arguments.num_images)):
        rendered = render_image(arguments.seed, arguments.split, index, arguments.width, arguments.height)
        (folder / _file_name(index + 1)).write_bytes(rendered.jpeg)
        chunk.append(rendered.annotations)
    return chunk


def _file_name(image_id: int) -> str:
    return f"{image_id:012d}.jpg"


def _summarize(dataset: dict[str, Any], annotations: Path, image_folder: Path, *, reused: bool) -> Summary:
    persons = [a for a in dataset["annotations"] if not a["iscrowd"]]
    occupied = {a["image_id"] for a in dataset["annotations"]}
    return Summary(
        annotations=annotations,
        image_folder=image_folder,
        images=len(dataset["images"]),
        persons=len(persons),
        persons_with_keypoints=sum(a["num_keypoints"] > 0 for a in persons),
        keypoints=sum(a["num_keypoints"] for a in persons),
        hidden_keypoints=sum(a["keypoints"][2::3].count(1) for a in persons),
        crowds=len(dataset["annotations"]) - len(persons),
        empty_images=len(dataset["images"]) - len(occupied),
        reused=reused,
    )
