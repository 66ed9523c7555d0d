"""COCO JSON and images → a record folder: plan the shards, let Beam write them, then write the metadata.

This order makes it safe to interrupt. A work folder notes the arguments; each shard appears whole under its final name;
`pipeline.json`, without which nobody reads the folder, comes last; then the work folder goes. Started again, the same
conversion goes on where it was, and ends with the same bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import re
import shutil
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline import storage
from pipeline.coco import CocoData, CocoImage, read_coco
from pipeline.command import Progress, UserError, reason_of
from pipeline.files import only_writer
from pipeline.record_folder import FORMAT_VERSION, NAME
from pipeline.writing.beam_job import beam_options, quiet_workers, run_job
from pipeline.writing.checked_image import ImageRules
from pipeline.writing.conversion_config import ConversionConfig
from pipeline.writing.image_files import LocatedImage, bytes_of, check_images, locate, measure
from pipeline.writing.metadata import (
    ConversionResult,
    ambiguous_file,
    check_same,
    joined_metadata,
    remove_split,
    skipped_by_reason,
    summary_file,
    to_json,
    write_metadata,
    write_summary,
)
from pipeline.writing.shard_writer import (
    ShardSettings,
    StoppedError,
    finished_shards,
    image_message,
    noted_images,
    start_run,
    stop_reason,
    stop_run,
)
from pipeline.writing.supervision import CTRL_C, progress_of_workers, stop_on_ctrl_c

OnError = Literal["fail", "skip"]
IMAGES_PER_SHARD = 512  # about 75 MB


def convert(
    annotations: str | Path,
    images: str | Path,
    output_dir: str | Path,
    split: str,
    config: ConversionConfig,
    *,
    on_error: OnError = "fail",
    overwrite: bool = False,
    beam_flags: Sequence[str] = (),
) -> ConversionResult:
    """Converts one split, or finishes a conversion that was interrupted.

    Args:
      annotations: a COCO keypoint file; a path or a URL, like the next two.
      images: the folder that the file names are relative to, or a zip file that holds it.
      output_dir: the record folder; other splits in it stay as they are.
      split: the name of the split.
      on_error: "skip" leaves out images that cannot be used, and lists them in errors-<split>.jsonl.
      overwrite: replaces an existing split of other arguments.
      beam_flags: flags of Beam's runners.

    Raises:
      UserError: a wrong argument or input; an image that cannot be used; no room on the disk.
    """
    images, output = str(images), str(output_dir)
    options = beam_options(beam_flags)
    FileSystems.set_options(options)
    _check_places(str(annotations), images, output, split)
    with quiet_workers(options):
        coco = _read(annotations, images, config)
    entries = in_record_order(coco.images)[: config.limit or None]
    arguments = _arguments(config, coco, len(entries))
    _make_output_folder(output)
    with contextlib.nullcontext() if storage.is_url(output) else only_writer(output, "conversion"):  # stores have no locks
        metadata = joined_metadata(output, split, _shared_metadata(config, coco), overwrite)
        existing = metadata["splits"].get(split)
        if existing is not None and not overwrite:
            check_same(f"split {split!r} of {output}", existing["arguments"], arguments)
            return _finished_before(output, split, existing["summary"], coco)
        if existing is not None:
            remove_split(output, split, metadata)
        everything = arguments | {key: value for key, value in metadata.items() if key != "splits"}
        work = _open_work_folder(output, split, everything, overwrite)
        settings = _shard_settings(config, coco, images, output, split, work, arguments["num_shards"], on_error)
        start = time.monotonic()
        converted = _write_shards(settings, split, entries, options)
        settings, again, rotations = _settle_ambiguous(settings, split, entries, options)
        seconds = time.monotonic() - start
        summary = write_metadata(settings, split, metadata, arguments, coco)
        notes = (*coco.notes, *rotations)
        result = ConversionResult(summary, skipped_by_reason(output, split), converted + again, seconds, notes)
        write_summary(result, output, split)
        storage.remove_folder(work)
    return result


def _check_places(annotations: str, images: str, output: str, split: str) -> None:
    if not re.fullmatch(NAME, split):
        raise UserError(f"--split={split}: must be small letters, digits and _")
    storage.check(annotations)
    storage.check(output)
    check_images(images)


def _shard_settings(
    config: ConversionConfig,
    coco: CocoData,
    images: str,
    output: str,
    split: str,
    work: str,
    num_shards: int,
    on_error: OnError,
) -> ShardSettings:
    return ShardSettings(
        images=images,
        output=output,
        work=work,
        run=uuid.uuid4().hex,
        prefix=f"{config.dataset_name}-{split}",
        num_shards=num_shards,
        category=tuple(name for _, name in coco.skeleton.classes) or coco.skeleton.category,
        anchors=config.anchors,
        short_edges=config.short_edges,
        max_edge=config.max_edge,
        on_error=on_error,
        rules=ImageRules(config.max_pixels, config.shrink_larger_than),
    )


def _arguments(config: ConversionConfig, coco: CocoData, num_images: int) -> dict[str, Any]:
    """What decides a split's records beside what all splits have in common."""
    num_shards = config.num_shards or max(1, round(num_images / IMAGES_PER_SHARD))
    arguments = {"num_shards": num_shards, "limit": config.limit, "input_sha256": coco.sha256()}
    return arguments | ({"shrink_larger_than": config.shrink_larger_than} if config.shrink_larger_than else {})


def _make_output_folder(output: str) -> None:
    try:
        storage.make_folder(output)
    except OSError as error:
        raise UserError(f"--output_dir={output}: cannot be a record folder ({reason_of(error)}); name another folder") from None


def _finished_before(output: str, split: str, summary: dict[str, Any], coco: CocoData) -> ConversionResult:
    """The result of a conversion that an earlier call finished, or nearly: it may have been stopped after the metadata."""
    storage.remove_folder(storage.join(output, f"unfinished-{split}"))
    result = ConversionResult(summary, skipped_by_reason(output, split), 0, 0.0, coco.notes)
    if not storage.exists(storage.join(output, summary_file(split))):
        write_summary(result, output, split)
    return result


def _read(annotations: str | Path, images: str, config: ConversionConfig) -> CocoData:
    coco = read_coco(
        annotations,
        category=config.category,
        classes=config.classes,
        keypoints=config.keypoints,
        flip_pairs=config.flip_pairs,
        sigmas=config.sigmas,
        measure=functools.partial(measure, images),
    )
    if config.keypoints is not None and coco.skeleton.keypoints != config.keypoints:
        own = ", ".join(coco.skeleton.keypoints)
        raise UserError(f"--keypoints: {annotations} has names of its own ({own:.200}); leave the flag out")
    return coco


def _settle_ambiguous(
    settings: ShardSettings, split: str, entries: Sequence[CocoImage], options: PipelineOptions
) -> tuple[ShardSettings, int, list[str]]:
    """Decides about stored rotations that fit the annotations both ways, once all other images have been seen.

    They are applied if more of the set's images show that the labelling tool applied them than that it did not. Then the shards
    of such images, which took them as stored, are written again.

    Returns:
      The settings that hold from now on, the number of images that were written again, and a line on these images, if any.
    """
    facts = finished_shards(settings, range(settings.num_shards))
    ambiguous = [image for number in sorted(facts) for image in facts[number]["ambiguous"]]
    if not ambiguous:
        return settings, 0, []
    votes = {
        key: sum(f["counts"].get(key, 0) for f in facts.values()) for key in ("images_meant_upright", "images_meant_as_stored")
    }
    turn = votes["images_meant_upright"] > votes["images_meant_as_stored"]
    again = 0
    if turn:
        rules = dataclasses.replace(settings.rules, turn_ambiguous=True)
        settings = dataclasses.replace(settings, rules=rules, run=uuid.uuid4().hex)
        again = _write_shards(settings, split, entries, options)
    some = ", ".join(f"{image['image_id']} {image['file']}" for image in ambiguous[:3]) + (", …" if len(ambiguous) > 3 else "")
    note = (
        f"{len(ambiguous)} images have a stored rotation that fits their size both ways ({some}): it is "
        f"{'applied' if turn else 'not applied'}, since the annotations of {votes['images_meant_upright']} other images mean "
        f"the image upright and those of {votes['images_meant_as_stored']} the image as stored; "
        f"{storage.join(settings.output, ambiguous_file(split))} lists them"
    )
    return settings, again, [note]


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


def in_record_order(entries: Sequence[CocoImage]) -> list[CocoImage]:
    """Sorts images by a hash of their id, which spreads them evenly and does not depend on anything else."""
    return sorted(entries, key=lambda entry: (hashlib.sha256(str(entry.id).encode()).digest(), entry.id))


def _write_shards(settings: ShardSettings, split: str, entries: Sequence[CocoImage], options: PipelineOptions) -> int:
    """Writes the shards that are missing; returns the number of their images."""
    bounds = [len(entries) * i // settings.num_shards for i in range(settings.num_shards + 1)]
    finished = finished_shards(settings, range(settings.num_shards))
    sizes = {n: bounds[n + 1] - bounds[n] for n in range(settings.num_shards) if n not in finished}
    if not sizes:
        return 0
    located = locate(settings.images, entries)
    if settings.on_error == "fail":
        for entry, member in located:
            if why := entry.error or (member if isinstance(member, str) else ""):
                raise UserError(image_message(settings.images, entry, why))
    missing = {number: located[bounds[number] : bounds[number + 1]] for number in sizes}
    _check_disk(settings, [entry for shard in missing.values() for entry in shard])
    for number, shard in missing.items():
        storage.write(settings.images_path(number), noted_images(shard))
    del located, missing  # workers have them; for all of COCO they are large
    start_run(settings)
    todo, failure = sum(sizes.values()), None
    try:
        with (
            quiet_workers(options),
            progress_of_workers(settings, sizes, Progress(len(entries), f"convert {split}", "image", done=len(entries) - todo)),
            stop_on_ctrl_c(settings),
        ):
            run_job(settings, list(sizes), options)
    except UserError as error:
        failure = str(error)
        with contextlib.suppress(StoppedError):
            stop_run(settings, failure)  # tells those still at work, if nobody met an error of his own
    reason = stop_reason(settings) or failure
    if reason is not None:
        raise KeyboardInterrupt if reason == CTRL_C else UserError(reason)
    return todo


def _check_disk(settings: ShardSettings, entries: Sequence[LocatedImage]) -> None:
    """Refuses to begin what the disk cannot hold, by the mean size of some of the images."""
    if storage.is_url(settings.output):
        return
    samples = 20 if storage.is_url(settings.images) else 500
    sizes = [bytes_of(settings.images, entry) for entry in entries[:: max(1, len(entries) // samples)]]
    # Anchors, annotations and the rest take about 10 kB an image.
    needed = int(len(entries) * (sum(sizes) / max(1, len(sizes)) + 10_000))
    free = shutil.disk_usage(settings.output).free
    if needed > free:
        raise UserError(
            f"{settings.output}: about {needed / 1e9:.1f} GB will be written, {free / 1e9:.1f} GB are free; make room"
        )


def _open_work_folder(output: str, split: str, arguments: Mapping[str, Any], overwrite: bool) -> str:
    """Makes the work folder of a split and notes the arguments in it, or checks them against those of one begun before."""
    work = storage.join(output, f"unfinished-{split}")
    noted = storage.join(work, "arguments.json")
    names = {arguments["dataset_name"]}
    if storage.exists(noted):
        try:
            begun = dict(json.loads(storage.read(noted, storage.MAX_NOTE_BYTES)))
        except (ValueError, TypeError):
            begun = {}  # damaged since
        try:
            check_same(f"unfinished split {split!r} of {output}", begun, arguments)
            for leftover in ("records-", "progress-"):
                storage.remove(work, storage.listing(work, leftover))
            return work
        except UserError:
            if not overwrite and storage.listing(work, "facts-", limit=1):
                raise  # (where no shard is finished, nothing is lost)
        names.add(begun.get("dataset_name", arguments["dataset_name"]))
        storage.remove_folder(work)
    for name in names:  # of a conversion that was given up: no metadata lists them
        storage.remove(output, storage.listing(output, f"{name}-{split}.tfrecord-"))
    storage.make_folder(work)
    storage.write(noted, to_json(arguments))
    return work
