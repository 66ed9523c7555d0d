"""The specification in the repository is the one that the code defines, and its examples run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import tensorflow as tf

from pipeline import records
from scripts import record_page


def test_the_page_is_not_stale() -> None:
    assert record_page.PAGE.read_text() == record_page.page(), "run python -m scripts.record_page"


def test_every_key_is_described() -> None:
    text = record_page.page()
    for field in records.FIELDS:
        row = next(line for line in text.splitlines() if line.startswith(f"| `{field.key}` |"))
        assert field.meaning in row and field.dtype in row and field.unit in row


def test_the_examples_read_records(coco_sample_records: Any) -> None:
    blocks = re.findall(r"```python\n(.*?)```", record_page.page(), flags=re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        code = block.replace('"records', f'"{Path(coco_sample_records.path)}')
        code = "\n".join(line for line in code.splitlines() if "needs pandas" not in line)  # (tried in test_tfds.py)
        found: dict[str, Any] = {}
        exec(code, found)
        if "names" in found:
            assert found["names"].dtype == tf.int64 and (found["names"][1:] > found["names"][:-1]).numpy().all()
        else:
            assert len(found["x"]) == 17 * len(found["x0"])
