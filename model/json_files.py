"""JSON files, read with an error for people, written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.command import UserError
from pipeline.files import write_file


def read_json(path: str | Path) -> Any:
    """Raises: UserError where there is no such file, or no JSON in it."""
    try:
        return json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from None


def write_json(path: Path, value: Any) -> None:
    """Writes `value`, a list with one entry a line, and the folder that the file lies in."""
    if isinstance(value, list):
        text = "[\n" + ",\n".join(json.dumps(entry) for entry in value) + "\n]\n" if value else "[]\n"
    else:
        text = json.dumps(value, indent=2) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, text)
