"""Writing what `data_set.py` reads: index, list of errors, TFDS metadata, and at last `pipeline.json`."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from pipeline import records
from pipeline.command import UserError
from pipeline.data_set import INDEX_DTYPE, METADATA_FILE, open_data_set
from pipeline.files import write_file
from pipeline.shard_writer import ShardSettings, read_facts


def joined_metadata(output: Path, split: str, shared: Mapping[str, Any], overwrite: bool) -> dict[str, Any]:
    """The metadata of a folder so far, or that of a new one.

    Args:
      split: that will be added or replaced.
      shared: what the split has in common with all others of the folder.
      overwrite: other values of `shared` are no obstacle where there is no other split.

    Raises:
      UserError: `shared` is not what the other splits have.
    """
    path = output / METADATA_FILE
    if not path.exists():
        return {**shared, "splits": {}}
    open_data_set(output)  # (says what is wrong, if something is)
    metadata: dict[str, Any] = json.loads(path.read_text())
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


def remove_split(output: Path, split: str, metadata: dict[str, Any]) -> None:
    """Takes a split out of the metadata, then removes its files."""
    removed = metadata["splits"].pop(split)
    if metadata["splits"]:
        write_file(output / METADATA_FILE, to_json(metadata))
    else:
        (output / METADATA_FILE).unlink()
    others = [removed["index"], f"errors-{split}.jsonl", f"contact-sheet-{split}.png"]
    for name in [shard["file"] for shard in removed["shards"]] + others:
        (output / name).unlink(missing_ok=True)


def write_metadata(
    settings: ShardSettings, split: str, metadata: dict[str, Any], arguments: Mapping[str, Any], counts: Mapping[str, int]
) -> dict[str, int]:
    """Writes index, list of errors, TFDS metadata, and at last `pipeline.json`; returns the summary."""
    all_facts = []
    for number in range(settings.num_shards):
        facts = read_facts(settings, number)
        if facts is None:
            raise UserError(f"{settings.output / settings.shard_file(number)}: vanished while converting; start again")
        all_facts.append(facts)
    rows = [(number, *row) for number, facts in enumerate(all_facts) for row in facts["index"]]
    index = io.BytesIO()
    np.save(index, np.array(rows, INDEX_DTYPE))
    write_file(settings.output / f"index-{split}.npy", index.getvalue())

    errors = [error for facts in all_facts for error in facts["errors"]]
    errors_path = settings.output / f"errors-{split}.jsonl"
    if errors:
        write_file(errors_path, "".join(json.dumps(error) + "\n" for error in errors))
    else:
        errors_path.unlink(missing_ok=True)

    totals: Counter[str] = Counter()
    for facts in all_facts:
        totals.update(facts["counts"])
    keys = ("persons", "labelled_persons", "labelled_keypoints", "crowds")
    summary = {"images": len(rows), "images_skipped": len(errors), "images_rotated": totals["images_rotated"]}
    summary |= {key: totals[key] for key in keys} | dict(counts)
    summary |= {"image_bytes": totals["image_bytes"], "record_bytes": sum(facts["bytes"] for facts in all_facts)}
    metadata["splits"][split] = {
        "arguments": dict(arguments),
        "input_sha256": arguments["input_sha256"],
        "images": len(rows),
        "index": f"index-{split}.npy",
        "shards": [{key: facts[key] for key in ("file", "records", "bytes", "sha256")} for facts in all_facts],
        "summary": summary,
    }
    _write_tfds_metadata(settings, metadata)
    write_file(settings.output / METADATA_FILE, to_json(metadata))
    return summary


def _write_tfds_metadata(settings: ShardSettings, metadata: Mapping[str, Any]) -> None:
    """Writes features.json and dataset_info.json, for all splits."""
    name = metadata["dataset_name"]
    folder = settings.work / name / "1.0.0"  # TFDS reads name and version off the path
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
    for file in ("features.json", "dataset_info.json"):
        write_file(settings.output / file, (folder / file).read_bytes())


def to_json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=1) + "\n"
