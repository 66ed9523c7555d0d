"""What a conversion did: a table for people, the same as JSON for programs."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Mapping

from pipeline import storage

# Shown even where they are 0; the other counts are of faults that most annotation files do not have.
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
      skipped: number of the pictures left out by the kind of reason.
      converted: pictures converted now, not in an earlier run.
      seconds: that it took to convert them.
    """

    summary: Mapping[str, int]
    skipped: Mapping[str, int]
    converted: int
    seconds: float


def skipped_by_reason(output: str, split: str) -> dict[str, int]:
    """Counts the lines of errors-<split>.jsonl by their reason with N for every number, the most frequent first."""
    try:
        lines = storage.read(storage.join(output, f"errors-{split}.jsonl")).splitlines()
    except FileNotFoundError:
        return {}
    reasons = Counter(re.sub(r"\d+(\.\d+)?", "N", json.loads(line)["reason"]) for line in lines)
    return dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))


def summary_file(split: str) -> str:
    return f"summary-{split}.json"


def write_summary(result: ConversionResult, output: str, split: str) -> None:
    """Saves it beside the records. It holds timings, so that it is the only file that two conversions write differently."""
    content = {
        "split": split,
        **result.summary,
        "skipped_by_reason": dict(result.skipped),
        "images_converted_by_last_run": result.converted,
        "seconds_of_last_run": round(result.seconds, 3),
        "images_per_second": round(result.converted / result.seconds, 2) if result.seconds else None,
    }
    storage.write(storage.join(output, summary_file(split)), json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def summary_table(result: ConversionResult, output: str, split: str) -> str:
    """What was converted and where it lies, for people: one count a line."""
    lines = []
    for key, value in result.summary.items():
        if value or key in ALWAYS_SHOWN:
            lines.append(f"{key.replace('_', ' '):>32}  {value:,}")
        if key == "images_skipped":
            lines += [f"{'of these':>32}  {count:,}  {reason}" for reason, count in result.skipped.items()]
    if result.seconds:
        if result.converted:
            lines.append(f"{'images per second':>32}  {result.converted / result.seconds:.1f}")
        lines.append(f"split {split!r} written to {output}; the table as JSON: {storage.join(output, summary_file(split))}")
    else:
        lines.append(f"split {split!r} was finished already in {output}; nothing to do")
    if result.summary["images_skipped"]:
        lines.append(f"pictures left out are listed in {storage.join(output, f'errors-{split}.jsonl')}")
        if not result.summary["images"]:
            lines.append("no picture was left: if --images is the reason, correct it and convert again with --overwrite")
    return "\n".join(lines)
