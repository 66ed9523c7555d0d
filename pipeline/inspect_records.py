r"""Looks at a record folder: draws them or the batches that training makes of them, counts, or checks every byte.

Examples:
  python -m pipeline.inspect_records --data_dir=records --split=train --output=sheet.png
  python -m pipeline.inspect_records --data_dir=records --split=train --image_id=785 --image_id=872 \
      --short_edge=640 --flipped --output=sheet.png
  python -m pipeline.inspect_records --data_dir=records --split=train --batches=1 --output=batches.png
  python -m pipeline.inspect_records --data_dir=records --split=train --batches=4 --output=batches.png \
      --hue=0.1 --set data.anchors=online --set data.jitter_canvas=1024
  python -m pipeline.inspect_records --data_dir=records --split=train --stats --output=statistics.html
  python -m pipeline.inspect_records --data_dir=records --verify
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from absl import flags

from pipeline import batch_flags, command
from pipeline.record_folder import RecordFolder, open_record_folder

FLAGS = flags.FlagValues()
flags.DEFINE_string("data_dir", None, "The record folder. Required.", flag_values=FLAGS)
flags.DEFINE_string("split", None, "The split to look at. By default the only one; with --verify, all.", flag_values=FLAGS)
flags.DEFINE_string(
    "output", None, "The file to write: the name of a sheet ends in .png or .jpg, that of a page in .html.", flag_values=FLAGS
)
flags.DEFINE_multi_integer("image_id", [], "The id of an image to draw; may be repeated.", flag_values=FLAGS)
flags.DEFINE_integer("count", 12, "The number of images to draw without --image_id.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_bool("flipped", False, "Draws images mirrored, as half of them are in training.", flag_values=FLAGS)
flags.DEFINE_bool("anchors", False, "Draws positive and ignored anchors beside each image.", flag_values=FLAGS)
flags.DEFINE_integer(
    "short_edge",
    None,
    "The short edge for which anchors are drawn. By default the largest one of the records.",
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "batches",
    None,
    "Draws training batches with their sampled anchors instead of records: this number for each canvas.",
    lower_bound=1,
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "batch_size", 4, "With --batches: the number of images in a batch.", lower_bound=1, upper_bound=65_536, flag_values=FLAGS
)
flags.DEFINE_integer(
    "num_canvases", None, "With --batches: the number of canvas sizes. By default 6.", lower_bound=1, flag_values=FLAGS
)
batch_flags.define(FLAGS)
flags.DEFINE_integer(
    "seed", 0, "With --batches: the seed of the training.", lower_bound=0, upper_bound=2**63 - 1, flag_values=FLAGS
)
flags.DEFINE_bool(
    "stats",
    False,
    "Counts instead of drawing: people, keypoints by joint and side, sizes, and how well anchors match, as a page with plots.",
    flag_values=FLAGS,
)
flags.DEFINE_bool(
    "verify",
    False,
    "Reads every record, image and matching again instead of drawing, and compares them with the metadata.",
    flag_values=FLAGS,
)
flags.mark_flags_as_required(["data_dir"], flag_values=FLAGS)

SHEET_WIDTH, ROW_HEIGHT = 1600, 320
FAULTS_SHOWN = 20  # of each file
# The modes in which a flag has a meaning; "" is the mode that draws records.
MEANS = {
    "output": ("", "--stats", "--batches"),
    **dict.fromkeys(("image_id", "count", "flipped", "anchors", "short_edge"), ("",)),
    **dict.fromkeys(("batch_size", "num_canvases", "seed"), ("--batches",)),
}


def main(_: list[str]) -> None:
    command.load_tensorflow()
    record_folder = open_record_folder(FLAGS.data_dir)

    if FLAGS.stats + FLAGS.verify + (FLAGS.batches is not None) > 1:
        raise command.UserError("--stats, --verify, --batches: one of them at a time")
    if FLAGS.batches is None and (FLAGS.set or batch_flags.colours(FLAGS)):
        raise command.UserError("--set, --brightness, --contrast, --saturation, --hue: change batches; add --batches=1")
    _check_meaning()
    if FLAGS.verify:
        _verify(record_folder)
    elif FLAGS.stats:
        _write_statistics(record_folder)
    elif FLAGS.batches:
        _draw_batches(record_folder)
    else:
        _draw_records(record_folder)


def _check_meaning() -> None:
    """Refuses flags that have no meaning in the mode that was chosen."""
    mode = "--verify" if FLAGS.verify else "--stats" if FLAGS.stats else "--batches" if FLAGS.batches else ""
    for name, modes in MEANS.items():
        if FLAGS[name].present and mode not in modes:
            raise command.UserError(f"--{name}: means nothing {f'with {mode}' if mode else 'without --batches'}; leave it out")


def _draw_records(record_folder: RecordFolder) -> None:
    from pipeline.inspection import contact_sheet, sheet

    output = _output()
    sheet.check_suffix(output)
    split = _split(record_folder)
    short_edge = FLAGS.short_edge
    if FLAGS.anchors and short_edge is None:
        short_edge = max(record_folder.short_edges, default=0)
    rows = (
        contact_sheet.rows_of(record_folder, split, FLAGS.image_id)
        if FLAGS.image_id
        else contact_sheet.chosen_rows(record_folder, split, FLAGS.count)
    )
    variant = contact_sheet.Variant(FLAGS.flipped, short_edge)
    drawn = contact_sheet.contact_sheet(record_folder, split, rows, variant, width=SHEET_WIDTH, row_height=ROW_HEIGHT)
    sheet.write_sheet(drawn, output)
    command.say(f"written: {output} ({command.counted(len(rows), 'image')})")


def _draw_batches(record_folder: RecordFolder) -> None:
    from pipeline.inspection import batch_sheet, sheet

    output = _output()
    sheet.check_suffix(output)
    split = _split(record_folder)
    config = batch_flags.batch_config(FLAGS, record_folder, num_canvases=FLAGS.num_canvases)
    steps = batch_sheet.chosen_steps(
        record_folder, split, config.data, batch_size=FLAGS.batch_size, seed=FLAGS.seed, per_canvas=FLAGS.batches
    )
    drawn = batch_sheet.batch_sheet(
        record_folder,
        split,
        config.data,
        steps,
        batch_size=FLAGS.batch_size,
        seed=FLAGS.seed,
        width=SHEET_WIDTH,
        anchor_config=config.anchors,
    )
    sheet.write_sheet(drawn, output)
    canvases = len({step.canvas for step in steps})
    command.say(
        f"written: {output} ({command.counted(len(steps), 'batch', 'batches')} "
        f"on {command.counted(canvases, 'canvas', 'canvases')})"
    )


def _write_statistics(record_folder: RecordFolder) -> None:
    from pipeline.files import write_file
    from pipeline.inspection.statistics import collect
    from pipeline.inspection.statistics_page import statistics_page

    output = _output()
    if output.suffix.lower() not in (".html", ".htm"):
        raise command.UserError(f"--output={output}: statistics are a page; its name must end in .html")
    split = _split(record_folder)
    with command.Progress(len(record_folder.index(split)), f"read {split}", "record") as progress:
        statistics = collect(record_folder, split, progress.advance)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_file(output, statistics_page(record_folder, split, statistics))
    command.say(f"written: {output} ({command.counted(statistics.images, 'image')})")


def _verify(record_folder: RecordFolder) -> None:
    from pipeline.inspection import verification

    splits = _splits(record_folder)
    found: Counter[Path] = Counter()
    for split in splits:
        with command.Progress(record_folder.splits[split].get("images", 0), f"verify {split}", "image") as progress:
            for fault in verification.verify(record_folder, split, progress.advance):
                found[fault.file] += 1
                if found[fault.file] <= FAULTS_SHOWN:
                    command.say(str(fault))
    for file, number in found.items():
        if number > FAULTS_SHOWN:
            command.say(f"{file}: {number - FAULTS_SHOWN} more faults")
    if found:
        raise command.UserError(
            f"{record_folder.path}: {command.counted(found.total(), 'fault')} "
            f"in {command.counted(len(found), 'file')}; copy those again, or convert anew "
            "(python -m pipeline.make_tfrecords --overwrite)"
        )
    for split in splits:
        shards = record_folder.splits[split]["shards"]
        command.say(
            f"split {split!r}: {command.counted(record_folder.splits[split]['images'], 'record')} "
            f"in {command.counted(len(shards), 'shard')}, "
            f"{sum(shard['bytes'] for shard in shards) / 1e6:,.1f} MB: all as they were written"
        )


def _splits(record_folder: RecordFolder) -> list[str]:
    """The split that was asked for, or all."""
    there = sorted(record_folder.splits)
    if FLAGS.split is None:
        return there
    if FLAGS.split not in there:
        raise command.UserError(f"--split={FLAGS.split}: {record_folder.path} has {', '.join(there) or 'none'}")
    return [FLAGS.split]


def _split(record_folder: RecordFolder) -> str:
    splits = _splits(record_folder)
    if len(splits) != 1:
        raise command.UserError(f"--split: {record_folder.path} has {', '.join(splits) or 'none'}; say which")
    return splits[0]


def _output() -> Path:
    if FLAGS.output is None:
        example = "statistics.html" if FLAGS.stats else "sheet.png"
        raise command.UserError(f"--output: the file to write is missing; name it, such as --output={example}")
    return Path(FLAGS.output)


if __name__ == "__main__":
    command.run(main, FLAGS, __doc__)
