"""Writing what `record_folder.py` reads: index, list of errors, TFDS metadata, and at last `pipeline.json`."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import re
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from pipeline import records, storage
from pipeline.coco import CocoData
from pipeline.command import UserError, shown
from pipeline.record_folder import INDEX_DTYPE, METADATA_FILE, lacking_keys, parse_record_folder
from pipeline.writing.shard_writer import ShardSettings, finished_shards


def joined_metadata(output: str, split: str, shared: Mapping[str, Any], overwrite: bool) -> dict[str, Any]:
    """The metadata of a folder so far, or that of a new one.

    Args:
      split: that will be added or replaced.
      shared: what the split has in common with all others of the folder.
      overwrite: lets other values of `shared` pass if the folder has no other split.

    Raises:
      UserError: `shared` is not what the other splits have.
    """
    path = storage.join(output, METADATA_FILE)
    if not storage.exists(path):
        return {**shared, "splits": {}}
    content = storage.read(path, storage.MAX_NOTE_BYTES)
    parse_record_folder(output, content)  # (says what is wrong, if something is)
    metadata: dict[str, Any] = json.loads(content)
    for name, info in metadata["splits"].items():
        lacking = lacking_keys(info, ("arguments", "images", "index", "shards", "summary"))
        if lacking:
            raise UserError(f"{path}: split {name!r} lacks {', '.join(lacking)}; give another --output_dir and convert anew")
    others = sorted(set(metadata["splits"]) - {split})
    if overwrite and not others:
        return {**shared, "splits": metadata["splits"]}
    what = f"split {', '.join(others) or split} of {output}"
    check_same(what, {key: value for key, value in metadata.items() if key != "splits"}, shared)
    return metadata


def check_same(what: str, existing: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises a UserError that names the first value of `wanted` that `existing` does not share."""
    for key in wanted:
        if existing.get(key) != wanted[key]:
            raise UserError(
                f"{what} was begun or made with {key} {json.dumps(existing.get(key))}, now it is {json.dumps(wanted[key])}; "
                "give the same, another --output_dir, or --overwrite to replace a split"
            )


def remove_split(output: str, split: str, metadata: dict[str, Any]) -> None:
    """Takes a split out of the metadata, then removes its files."""
    removed = metadata["splits"].pop(split)
    if metadata["splits"]:
        storage.write(storage.join(output, METADATA_FILE), to_json(metadata))
    else:
        storage.remove(output, [METADATA_FILE])
    others = [
        removed["index"],
        f"errors-{split}.jsonl",
        ambiguous_file(split),
        summary_file(split),
        f"contact-sheet-{split}.png",
    ]
    storage.remove(output, [*(shard["file"] for shard in removed["shards"]), *others])


def write_metadata(
    settings: ShardSettings, split: str, metadata: dict[str, Any], arguments: Mapping[str, Any], coco: CocoData
) -> dict[str, int]:
    """Writes index, list of errors, TFDS metadata, and at last `pipeline.json`; returns the summary."""
    finished = finished_shards(settings, range(settings.num_shards))
    missing = [number for number in range(settings.num_shards) if number not in finished]
    if missing:
        path = settings.shard_path(missing[0])
        raise UserError(f"{path}: one of {len(missing)} shards that were not written or have vanished; start again")
    all_facts = [finished[number] for number in range(settings.num_shards)]
    rows = [(number, *row) for number, facts in enumerate(all_facts) for row in facts["index"]]
    index = io.BytesIO()
    np.save(index, np.array(rows, INDEX_DTYPE))
    storage.write(storage.join(settings.output, f"index-{split}.npy"), index.getvalue())

    errors = [error for facts in all_facts for error in facts["errors"]]
    errors_file = f"errors-{split}.jsonl"
    if errors:
        storage.write(storage.join(settings.output, errors_file), "".join(json.dumps(error) + "\n" for error in errors))
    else:
        storage.remove(settings.output, [errors_file])

    ambiguous = [image for facts in all_facts for image in facts["ambiguous"]]
    if ambiguous:
        lines = "".join(json.dumps(image) + "\n" for image in ambiguous)
        storage.write(storage.join(settings.output, ambiguous_file(split)), lines)
    else:
        storage.remove(settings.output, [ambiguous_file(split)])

    totals: Counter[str] = Counter()
    for facts in all_facts:
        totals.update(facts["counts"])
    keys = ("persons", "labelled_persons", "labelled_keypoints", "crowds")
    summary = {"images": len(rows), "images_skipped": len(errors), "images_rotated": totals["images_rotated"]}
    summary |= {"rotations_ambiguous": len(ambiguous), "images_shrunk": totals["images_shrunk"]}
    summary |= {key: totals[key] for key in keys} | dict(coco.counts)
    summary |= {"image_bytes": totals["image_bytes"], "record_bytes": sum(facts["bytes"] for facts in all_facts)}
    metadata["splits"][split] = {
        "arguments": dict(arguments),
        "input_sha256": arguments["input_sha256"],
        "images": len(rows),
        "index": f"index-{split}.npy",
        "index_sha256": hashlib.sha256(index.getvalue()).hexdigest(),
        "shards": [{key: facts[key] for key in ("file", "records", "bytes", "sha256")} for facts in all_facts],
        "summary": summary,
        "stated": dict(coco.stated),
    }
    with tempfile.TemporaryDirectory(prefix="make_tfrecords-") as scratch:
        for file in _tfds_metadata(Path(scratch), metadata):
            storage.write(storage.join(settings.output, file.name), file.read_bytes())
    storage.write(storage.join(settings.output, METADATA_FILE), to_json(metadata))
    return summary


def _tfds_metadata(scratch: Path, metadata: Mapping[str, Any]) -> list[Path]:
    """Lets TFDS write features.json and dataset_info.json, for all splits."""
    name = metadata["dataset_name"]
    folder = scratch / name / "1.0.0"  # TFDS reads name and version off the path
    folder.mkdir(parents=True, exist_ok=True)
    for content in metadata["splits"].values():
        for shard in content["shards"]:
            (folder / shard["file"]).touch()  # write_metadata wants to see shards, though it does not read them
    splits = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[shard["records"] for shard in content["shards"]],
            num_bytes=sum(shard["bytes"] for shard in content["shards"]),
            filename_template=tfds.core.ShardedFileTemplate(
                data_dir=folder, dataset_name=name, split=split, filetype_suffix="tfrecord"
            ),
        )
        for split, content in sorted(metadata["splits"].items())
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=folder, features=records.features(), split_infos=splits, filename_template=None, check_data=False
    )
    return [folder / "features.json", folder / "dataset_info.json"]


def to_json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=1) + "\n"


# Shown even if they are 0; the other counts are of faults that most annotation files do not have.
ALWAYS_SHOWN = (
    "images",
    "images_skipped",
    "persons",
    "labelled_persons",
    "labelled_keypoints",
    "crowds",
    "boxes_clipped",
    "boxes_without_area",
    "keypoints_outside",
)


@dataclasses.dataclass(frozen=True)
class ConversionResult:
    """What a conversion did.

    Attributes:
      summary: counts, as saved in `pipeline.json`.
      skipped: the number of images left out, by the kind of reason.
      converted: images converted now, not in an earlier run.
      seconds: the time that this took.
      notes: what was found out, assumed or left out, a line each.
    """

    summary: Mapping[str, int]
    skipped: Mapping[str, int]
    converted: int
    seconds: float
    notes: tuple[str, ...] = ()


def skipped_by_reason(output: str, split: str) -> dict[str, int]:
    """Counts the lines of errors-<split>.jsonl by their reason with N for every number, the most frequent first."""
    try:
        lines = storage.read(storage.join(output, f"errors-{split}.jsonl"), storage.MAX_NOTE_BYTES).splitlines()
    except FileNotFoundError:
        return {}
    reasons = Counter(re.sub(r"\d+(\.\d+)?", "N", _reason(line)) for line in lines)
    return dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))


def _reason(line: bytes) -> str:
    try:
        return str(json.loads(line)["reason"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return "(a line of the list of errors that is damaged)"


def ambiguous_file(split: str) -> str:
    """Lists the images whose stored rotation fits the annotations both ways, and whether it was applied."""
    return f"ambiguous-{split}.jsonl"


def summary_file(split: str) -> str:
    return f"summary-{split}.json"


def write_summary(result: ConversionResult, output: str, split: str) -> None:
    """Saves the result beside the records. This is the only file that two conversions write differently: it holds timings."""
    content = {
        "split": split,
        **result.summary,
        "skipped_by_reason": dict(result.skipped),
        "notes": list(result.notes),
        "images_converted_by_last_run": result.converted,
        "seconds_of_last_run": round(result.seconds, 3),
        "images_per_second": round(result.converted / result.seconds, 2) if result.seconds else None,
    }
    storage.write(storage.join(output, summary_file(split)), json.dumps(content, indent=1) + "\n")


def summary_table(result: ConversionResult, output: str, split: str) -> str:
    """What was converted and where it lies, for people: one count a line."""
    lines = []
    for key, value in result.summary.items():
        if value or key in ALWAYS_SHOWN:
            lines.append(f"{key.replace('_', ' '):>32}  {value:,}")
        if key == "images_skipped":
            lines += [f"{'of these':>32}  {count:,}  {reason}" for reason, count in result.skipped.items()]
    if result.seconds and result.converted:
        lines.append(f"{'images per second':>32}  {result.converted / result.seconds:.1f}")
    lines += result.notes
    if result.seconds:
        lines.append(f"split {split!r} written to {output}; the table as JSON: {storage.join(output, summary_file(split))}")
    else:
        lines.append(f"split {split!r} was finished already in {output}; nothing to do")
    if result.summary["images_skipped"]:
        lines.append(f"images left out are listed in {storage.join(output, f'errors-{split}.jsonl')}")
        if not result.summary["images"]:
            lines.append("no image was left: if --images is the reason, correct it and convert again with --overwrite")
    return "\n".join(map(shown, lines))


def check_not_empty(result: ConversionResult, images: str) -> None:
    """Refuses a split without an image, which is a wrong argument more often than not.

    Raises:
      UserError: the split has no image; the most frequent reason is named.
    """
    if result.summary["images"]:
        return
    if not result.skipped:
        raise UserError("no image was converted: the annotations have none; give another --annotations")
    reason, count = next(iter(result.skipped.items()))
    raise UserError(
        f"no image was converted: all {result.summary['images_skipped']} were left out, {count} of them with the reason "
        f"{shown(reason)!r}; if --images={images} does not hold the annotations' files, correct it, and add --overwrite"
    )
