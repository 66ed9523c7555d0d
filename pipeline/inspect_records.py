r"""Looks at a folder of records: draws them or the batches that training makes of them, counts, or checks every byte.

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
from pipeline.record_folder import DataSet, open_data_set

FLAGS = flags.FlagValues()
flags.DEFINE_string("data_dir", None, "Folder of records.", flag_values=FLAGS)
flags.DEFINE_string("split", None, "Which split; may be left out where there is one, or with --verify.", flag_values=FLAGS)
flags.DEFINE_string("output", None, "File to write: a sheet ends in .png or .jpg, a page in .html.", flag_values=FLAGS)
flags.DEFINE_multi_integer("image_id", [], "Draws this image; may be repeated.", flag_values=FLAGS)
flags.DEFINE_integer("count", 12, "How many images to draw without --image_id.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_bool("flipped", False, "Draws images mirrored, as half of them are in training.", flag_values=FLAGS)
flags.DEFINE_bool("anchors", False, "Draws positive and ignored anchors beside each image.", flag_values=FLAGS)
flags.DEFINE_integer(
    "short_edge", None, "Short edge for which to draw the anchors; by default the largest one.", flag_values=FLAGS
)
flags.DEFINE_integer(
    "batches",
    None,
    "Instead of records, draws training batches: so many for each canvas, with the sampled anchors.",
    lower_bound=1,
    flag_values=FLAGS,
)
flags.DEFINE_integer("batch_size", 4, "With --batches: images in a batch.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("num_canvases", None, "With --batches: sizes of batches; 6 by default.", lower_bound=1, flag_values=FLAGS)
batch_flags.define(FLAGS)
flags.DEFINE_integer("seed", 0, "With --batches: seed of the training.", lower_bound=0, flag_values=FLAGS)
flags.DEFINE_bool(
    "stats",
    False,
    "Instead of drawing, counts: people, keypoints by joint and side, sizes, and how well anchors match, as a page with plots.",
    flag_values=FLAGS,
)
flags.DEFINE_bool(
    "verify",
    False,
    "Instead of drawing, re-reads every record, image and matching and compares them with the metadata.",
    flag_values=FLAGS,
)
flags.mark_flags_as_required(["data_dir"], flag_values=FLAGS)

SHEET_WIDTH, ROW_HEIGHT = 1600, 320
FAULTS_SHOWN = 20  # of each file
# Beside which flags those that not all know have a meaning; "": where records are drawn.
MEANS = {
    "output": ("", "--stats", "--batches"),
    **dict.fromkeys(("image_id", "count", "flipped", "anchors", "short_edge"), ("",)),
    **dict.fromkeys(("batch_size", "num_canvases", "seed"), ("--batches",)),
}


def main(_: list[str]) -> None:
    command.load_tensorflow()
    data_set = open_data_set(FLAGS.data_dir)

    if FLAGS.stats + FLAGS.verify + (FLAGS.batches is not None) > 1:
        raise command.UserError("--stats, --verify, --batches: one of them at a time")
    if FLAGS.batches is None and (FLAGS.set or batch_flags.colours(FLAGS)):
        raise command.UserError("--set, --brightness, --contrast, --saturation, --hue: change batches; add --batches=1")
    _check_meaning()
    if FLAGS.verify:
        _verify(data_set)
    elif FLAGS.stats:
        _write_statistics(data_set)
    elif FLAGS.batches:
        _draw_batches(data_set)
    else:
        _draw_records(data_set)


def _check_meaning() -> None:
    """Refuses flags that would do nothing beside those that choose what is done."""
    mode = "--verify" if FLAGS.verify else "--stats" if FLAGS.stats else "--batches" if FLAGS.batches else ""
    for name, modes in MEANS.items():
        if FLAGS[name].present and mode not in modes:
            raise command.UserError(f"--{name}: means nothing {f'with {mode}' if mode else 'without --batches'}; leave it out")


def _draw_records(data_set: DataSet) -> None:
    from pipeline.inspection import contact_sheet, sheet

    output = _output()
    sheet.check_suffix(output)
    split = _split(data_set)
    short_edge = FLAGS.short_edge
    if FLAGS.anchors and short_edge is None:
        short_edge = max(data_set.short_edges, default=0)
    rows = (
        contact_sheet.rows_of(data_set, split, FLAGS.image_id)
        if FLAGS.image_id
        else contact_sheet.chosen_rows(data_set, split, FLAGS.count)
    )
    variant = contact_sheet.Variant(FLAGS.flipped, short_edge)
    drawn = contact_sheet.contact_sheet(data_set, split, rows, variant, width=SHEET_WIDTH, row_height=ROW_HEIGHT)
    sheet.write_sheet(drawn, output)
    print(f"written: {output} ({len(rows)} images)")


def _draw_batches(data_set: DataSet) -> None:
    from pipeline.inspection import batch_sheet, sheet

    output = _output()
    sheet.check_suffix(output)
    split = _split(data_set)
    config = batch_flags.batch_config(FLAGS, data_set, num_canvases=FLAGS.num_canvases)
    steps = batch_sheet.chosen_steps(
        data_set, split, config.data, batch_size=FLAGS.batch_size, seed=FLAGS.seed, per_canvas=FLAGS.batches
    )
    drawn = batch_sheet.batch_sheet(
        data_set,
        split,
        config.data,
        steps,
        batch_size=FLAGS.batch_size,
        seed=FLAGS.seed,
        width=SHEET_WIDTH,
        anchor_config=config.anchors,
    )
    sheet.write_sheet(drawn, output)
    print(f"written: {output} ({len(steps)} batches on {len({step.canvas for step in steps})} canvases)")


def _write_statistics(data_set: DataSet) -> None:
    from pipeline.files import write_file
    from pipeline.inspection.statistics import collect
    from pipeline.inspection.statistics_page import statistics_page

    output = _output()
    if output.suffix.lower() not in (".html", ".htm"):
        raise command.UserError(f"{output}: statistics are a page; its name must end in .html")
    split = _split(data_set)
    with command.Progress(len(data_set.index(split)), f"read {split}", "record") as progress:
        statistics = collect(data_set, split, progress.advance)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_file(output, statistics_page(data_set, split, statistics))
    print(f"written: {output} ({statistics.images:,} images)")


def _verify(data_set: DataSet) -> None:
    from pipeline.inspection import verification

    splits = _splits(data_set)
    found: Counter[Path] = Counter()
    for split in splits:
        with command.Progress(data_set.splits[split]["images"], f"verify {split}", "image") as progress:
            for fault in verification.verify(data_set, split, progress.advance):
                found[fault.file] += 1
                if found[fault.file] <= FAULTS_SHOWN:
                    print(fault, flush=True)
    for file, number in found.items():
        if number > FAULTS_SHOWN:
            print(f"{file}: {number - FAULTS_SHOWN} more faults")
    if found:
        raise command.UserError(
            f"{data_set.folder}: {found.total()} faults in {len(found)} files; copy those again, or convert anew "
            "(python -m pipeline.make_tfrecords --overwrite)"
        )
    for split in splits:
        shards = data_set.splits[split]["shards"]
        print(
            f"split {split!r}: {data_set.splits[split]['images']:,} records in {len(shards)} shards, "
            f"{sum(shard['bytes'] for shard in shards) / 1e6:,.1f} MB: all as they were written"
        )


def _splits(data_set: DataSet) -> list[str]:
    """The split that was asked for, or all."""
    there = sorted(data_set.splits)
    if FLAGS.split is None:
        return there
    if FLAGS.split not in there:
        raise command.UserError(f"--split={FLAGS.split}: {data_set.folder} has {', '.join(there) or 'none'}")
    return [FLAGS.split]


def _split(data_set: DataSet) -> str:
    splits = _splits(data_set)
    if len(splits) != 1:
        raise command.UserError(f"--split: {data_set.folder} has {', '.join(splits) or 'none'}; say which")
    return splits[0]


def _output() -> Path:
    if FLAGS.output is None:
        raise command.UserError("--output: the file to write, such as --output=sheet.png")
    return Path(FLAGS.output)


if __name__ == "__main__":
    command.run(main, FLAGS, __doc__)
