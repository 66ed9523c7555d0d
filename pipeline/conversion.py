"""COCO JSON and pictures → a folder of records: plan the shards, let Beam write them, then write the metadata.

The order is what makes it safe to interrupt. A work folder notes the arguments; each shard appears whole under its final name;
`pipeline.json`, without which nobody reads the folder, comes last; then the work folder goes. Started again, the same
conversion goes on where it was, and ends with the same bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import io
import json
import pickle
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.runners.runner import create_runner

from pipeline.anchors import AnchorConfig
from pipeline.coco import CocoData, Picture, read_coco
from pipeline.command import Progress, UserError
from pipeline.data_set import FORMAT_VERSION
from pipeline.files import write_file
from pipeline.metadata import check_same, joined_metadata, remove_split, to_json, write_metadata
from pipeline.shard_writer import ShardSettings, picture_message, read_facts, stop, write_shard

PICTURES_PER_SHARD = 512  # about 75 MB
# The in-process runner. Beam's default would first try to download another one.
DEFAULT_RUNNER = "FnApiRunner"
CTRL_C = "Ctrl-C"


@dataclasses.dataclass(frozen=True)
class ConversionConfig:
    """What determines the records, apart from the pictures and annotations.

    Attributes:
      num_shards: by default a function of the number of pictures alone.
      short_edges, max_edge: the sizes at which training will see the pictures; each plain and flipped. Without a short edge
        the records hold no anchors.
      limit: takes only so many pictures, in the order of the records; 0 takes all.
      flip_pairs, sigmas: of the keypoint set, as for `Skeleton.from_category`.
    """

    dataset_name: str = "coco_person_keypoints"
    num_shards: int | None = None
    short_edges: tuple[int, ...] = (640, 672, 704, 736, 768, 800)
    max_edge: int = 1333
    anchors: AnchorConfig = dataclasses.field(default_factory=AnchorConfig)
    limit: int = 0
    flip_pairs: tuple[tuple[str, str], ...] | None = None
    sigmas: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.dataset_name):
            raise UserError(f"dataset name {self.dataset_name!r}: small letters, digits and _ make a name")
        if self.num_shards is not None and not 1 <= self.num_shards <= 99_999:
            raise UserError(f"{self.num_shards} shards: between 1 and 99999 are possible")
        edges = self.short_edges
        if len(set(edges)) != len(edges) or not all(32 <= edge <= self.max_edge for edge in edges):
            raise UserError(f"short edges {list(edges)}: each once, in 32…{self.max_edge} (the long edge's limit)")
        if self.max_edge > 8192:
            raise UserError(f"max edge {self.max_edge}: at most 8192 pixels")
        if self.limit < 0:
            raise UserError(f"limit {self.limit}: a number of pictures, or 0 for all")


@dataclasses.dataclass(frozen=True)
class ConversionResult:
    """What a conversion did.

    Attributes:
      summary: counts, as saved in `pipeline.json`.
      converted: pictures converted now, not in an earlier run.
      seconds: that it took to convert them.
    """

    summary: Mapping[str, int]
    converted: int
    seconds: float


def convert(
    annotations: str | Path,
    images: str | Path,
    output_dir: str | Path,
    split: str,
    config: ConversionConfig,
    *,
    on_error: Literal["fail", "skip"] = "fail",
    overwrite: bool = False,
    beam_flags: Sequence[str] = (),
) -> ConversionResult:
    """Converts one split, or finishes a conversion that was interrupted.

    Args:
      annotations: a COCO keypoint file.
      images: the folder that the file names are relative to.
      output_dir: the data set; other splits in it stay as they are.
      split: its name.
      on_error: "skip" leaves pictures out that cannot be used, and lists them in errors-<split>.jsonl.
      overwrite: replaces an existing split of other arguments.
      beam_flags: of Beam's runners.

    Raises:
      UserError: a wrong argument or input; a picture that cannot be used; no room on the disk.
    """
    options = beam_options(beam_flags)
    if not re.fullmatch(r"[a-z][a-z0-9_]*", split):
        raise UserError(f"split {split!r}: small letters, digits and _ make a name")
    images, output = Path(images), Path(output_dir)
    if not images.is_dir():
        raise UserError(f"{images}: no such folder of pictures")
    coco = read_coco(annotations, flip_pairs=config.flip_pairs, sigmas=config.sigmas)
    pictures = in_record_order(coco.pictures)[: config.limit or None]
    num_shards = config.num_shards or max(1, round(len(pictures) / PICTURES_PER_SHARD))
    arguments = {"num_shards": num_shards, "limit": config.limit, "input_sha256": coco.sha256()}
    output.mkdir(parents=True, exist_ok=True)
    with _only_writer(output):
        metadata = joined_metadata(output, split, _shared_metadata(config, coco), overwrite)
        existing = metadata["splits"].get(split)
        if existing is not None and not overwrite:
            check_same(f"split {split!r} of {output}", existing["arguments"], arguments)
            shutil.rmtree(output / f"unfinished-{split}", ignore_errors=True)  # (stopped after the metadata was written)
            return ConversionResult(existing["summary"], 0, 0.0)
        if existing is not None:
            remove_split(output, split, metadata)
        everything = arguments | {key: value for key, value in metadata.items() if key != "splits"}
        work = _open_work_folder(output, split, everything, overwrite)
        settings = ShardSettings(
            images=images,
            output=output,
            work=work,
            prefix=f"{config.dataset_name}-{split}",
            num_shards=num_shards,
            category=coco.skeleton.category,
            anchors=config.anchors,
            short_edges=config.short_edges,
            max_edge=config.max_edge,
            on_error=on_error,
        )
        start = time.monotonic()
        converted = _write_shards(settings, split, pictures, options)
        seconds = time.monotonic() - start
        summary = write_metadata(settings, split, metadata, arguments, coco.counts)
        shutil.rmtree(work)
    return ConversionResult(summary, converted, seconds)


def _shared_metadata(config: ConversionConfig, coco: CocoData) -> dict[str, Any]:
    """What all splits of a folder have in common."""
    return {
        "format_version": FORMAT_VERSION,
        "dataset_name": config.dataset_name,
        "anchors": config.anchors.to_json(),
        "variants": {"short_edges": list(config.short_edges), "max_edge": config.max_edge, "flipped": [False, True]},
        "skeleton": coco.skeleton.to_json(),
        "category_id": coco.category_id,
    }


def in_record_order(pictures: Sequence[Picture]) -> list[Picture]:
    """Sorts pictures by a hash of their id, which spreads them evenly and does not depend on anything else."""
    return sorted(pictures, key=lambda picture: (hashlib.sha256(str(picture.id).encode()).digest(), picture.id))


def beam_options(flags: Sequence[str]) -> PipelineOptions:
    """Beam's options from flags, with its own parsers.

    Raises:
      UserError: a flag that Beam does not know either.
    """
    for before, flag in zip(["--flag=value", *flags], flags, strict=False):
        if not flag.startswith("--") and ("=" in before or not before.startswith("--")):
            raise UserError(f"{flag!r}: every argument is a flag --name=value; --help lists them")
    options = PipelineOptions(list(flags))
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            given = options.get_all_options(retain_unknown_options=True)
    except SystemExit:  # Beam's way to refuse a value
        raise UserError(f"{complaint.getvalue().strip().splitlines()[-1].partition('error: ')[2]} (a flag of Beam)") from None
    for name in sorted(set(given) - set(PipelineOptions([]).get_all_options())):
        raise UserError(f"--{name}: no flag of this command nor of Beam; --help lists this command's")
    standard = options.view_as(StandardOptions)
    standard.runner = standard.runner or DEFAULT_RUNNER
    try:
        create_runner(standard.runner)
    except (ValueError, ImportError, AttributeError) as error:
        raise UserError(f"--runner={standard.runner}: no runner of this installation ({error})") from None
    return options


def _run_pipeline(settings: ShardSettings, numbers: Sequence[int], options: PipelineOptions) -> None:
    """The Beam job: shard numbers → workers that write them."""
    with beam.Pipeline(options=options) as pipeline:
        shards = pipeline | "shards" >> beam.Create(numbers, reshuffle=False)
        _ = shards | "spread" >> beam.Reshuffle() | "write" >> beam.ParDo(_WriteShard(settings))


class _WriteShard(beam.DoFn):
    """Shard number → nothing: what a shard holds lies in its facts file, where a restart finds it too."""

    def __init__(self, settings: ShardSettings) -> None:
        self._settings = settings

    def process(self, number: int) -> None:
        write_shard(self._settings, number)


def _write_shards(settings: ShardSettings, split: str, pictures: Sequence[Picture], options: PipelineOptions) -> int:
    """Writes the shards that are missing; returns the number of their pictures."""
    if settings.on_error == "fail":
        for picture in pictures:
            if picture.error:
                raise UserError(picture_message(settings.images, picture, picture.error))
    bounds = [len(pictures) * i // settings.num_shards for i in range(settings.num_shards + 1)]
    missing = [number for number in range(settings.num_shards) if read_facts(settings, number) is None]
    todo = sum(bounds[number + 1] - bounds[number] for number in missing)
    if not missing:
        return 0
    _check_disk(settings, [p for number in missing for p in pictures[bounds[number] : bounds[number + 1]]])
    settings.stop_path.unlink(missing_ok=True)
    for number in missing:
        settings.progress_path(number).write_bytes(b"")
        settings.pictures_path(number).write_bytes(pickle.dumps(pictures[bounds[number] : bounds[number + 1]], protocol=5))
    progress = Progress(len(pictures), f"convert {split}", "image", done=len(pictures) - todo)
    with _progress_of_workers(settings, missing, progress), _stop_on_ctrl_c(settings):
        _run_pipeline(settings, missing, options)
    if settings.stop_path.exists():
        reason = settings.stop_path.read_text()
        raise KeyboardInterrupt if reason == CTRL_C else UserError(reason)
    return todo


@contextlib.contextmanager
def _stop_on_ctrl_c(settings: ShardSettings) -> Iterator[None]:
    """Lets Ctrl-C stop the workers before their next picture; an exception amid Beam would end in a traceback."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, previous)  # a second one ends at once
        stop(settings, CTRL_C)

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


@contextlib.contextmanager
def _progress_of_workers(settings: ShardSettings, numbers: Sequence[int], progress: Progress) -> Iterator[None]:
    """Shows how far all workers are, whichever processes they are: they write one byte for each picture done."""
    finished = threading.Event()

    def watch() -> None:
        shown = 0
        while not finished.wait(0.5):
            done = sum(settings.progress_path(number).stat().st_size for number in numbers)
            progress.advance(done - shown)
            shown = done

    thread = threading.Thread(target=watch, daemon=True)
    with progress:
        thread.start()
        try:
            yield
        finally:
            finished.set()
            thread.join()


def _check_disk(settings: ShardSettings, pictures: Sequence[Picture]) -> None:
    """Refuses to begin what the disk cannot hold, by the mean size of some of the pictures."""
    sample = pictures[:: max(1, len(pictures) // 500)]
    sizes = []
    for picture in sample:
        with contextlib.suppress(OSError):
            sizes.append((settings.images / picture.file_name).stat().st_size if picture.file_name else 0)
    # Anchors, annotations and the rest take about 10 kB a picture.
    needed = int(len(pictures) * (sum(sizes) / max(1, len(sizes)) + 10_000))
    free = shutil.disk_usage(settings.output).free
    if needed > free:
        raise UserError(
            f"{settings.output}: about {needed / 1e9:.1f} GB will be written, {free / 1e9:.1f} GB are free; make room"
        )


@contextlib.contextmanager
def _only_writer(output: Path) -> Iterator[None]:
    """Holds a lock on the folder, which the system gives back however the process ends."""
    path = output / ".lock"
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{output}: another conversion is writing to it; wait for its end") from None
        except OSError:
            pass  # a file system without locks
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _open_work_folder(output: Path, split: str, arguments: Mapping[str, Any], overwrite: bool) -> Path:
    """Makes the work folder of a split and notes the arguments in it, or checks them against those of one begun before."""
    work = output / f"unfinished-{split}"
    noted = work / "arguments.json"
    names = {arguments["dataset_name"]}
    if noted.exists():
        begun = json.loads(noted.read_text())
        try:
            check_same(f"unfinished split {split!r} of {output}", begun, arguments)
            return work
        except UserError:
            if not overwrite:
                raise
        names.add(begun["dataset_name"])
        shutil.rmtree(work)
    for name in names:
        for shard in output.glob(f"{name}-{split}.tfrecord-*"):
            shard.unlink()  # of a conversion that was given up: no metadata lists it
    work.mkdir(exist_ok=True)
    write_file(noted, to_json(arguments))
    return work


def summary_table(result: ConversionResult, output_dir: str | Path, split: str) -> str:
    """What was converted and where it lies, for people: the counts that are not 0, one a line."""
    lines = [f"{key.replace('_', ' '):>32}  {value:,}" for key, value in result.summary.items() if value or key == "images"]
    if result.seconds:
        if result.converted:
            lines.append(f"{'images per second':>32}  {result.converted / result.seconds:.1f}")
        lines.append(f"split {split!r} written to {output_dir}")
    else:
        lines.append(f"split {split!r} was finished already in {output_dir}; nothing to do")
    if result.summary["images_skipped"]:
        lines.append(f"pictures left out are listed in {Path(output_dir) / f'errors-{split}.jsonl'}")
    return "\n".join(lines)
