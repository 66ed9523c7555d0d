"""`training_data.json` of a model directory: the records that the model was trained on, and the licences that they state.

It grows by an entry if training goes on with other records. An export puts it into the model card.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.command import UserError
from pipeline.files import read_json, write_json
from pipeline.licences import cleaned
from pipeline.record_folder import RecordFolder

TRAINING_DATA_FILE = "training_data.json"
_KEYS = {"dataset", "split", "images"}


def note_training_data(model_dir: Path, record_folder: RecordFolder, split: str) -> None:
    """Adds the records to what the model directory says of its training data, unless they are there already.

    Raises:
      UserError: the file is damaged.
    """
    info = record_folder.splits[split]
    entry = {
        "dataset": record_folder.name,
        "split": split,
        "images": info["images"],
        "input_sha256": info.get("input_sha256"),
        "stated": cleaned(info.get("stated")),
    }
    known = training_data(model_dir)
    if entry not in known:
        write_json(model_dir / TRAINING_DATA_FILE, {"trained_on": [*known, entry]})


def training_data(model_dir: Path) -> list[dict[str, Any]]:
    """The entries, in the order of training; none for a model that was not trained here.

    Raises:
      UserError: the file is damaged.
    """
    path = model_dir / TRAINING_DATA_FILE
    if not path.exists():
        return []
    content = read_json(path)
    entries = content.get("trained_on") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and entry.keys() >= _KEYS for entry in entries):
        raise UserError(f"{path}: not a note on training data; restore the file that was written with the model, or remove it")
    return [{**entry, "stated": cleaned(entry.get("stated"))} for entry in entries]
