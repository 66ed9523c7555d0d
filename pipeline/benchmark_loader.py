r"""Shows what the loader makes of records: canvases, padding, memory of caches; with --benchmark also how fast it is here.

Examples:
  python -m pipeline.benchmark_loader --data_dir=records --split=train
  python -m pipeline.benchmark_loader --data_dir=records --split=train --batch_size=16 --benchmark
  python -m pipeline.benchmark_loader --data_dir=records --benchmark --set data.anchors=online --set data.jitter_canvas=1024
"""

from __future__ import annotations

from absl import flags

from pipeline import batch_flags, command
from pipeline.command import UserError
from pipeline.record_folder import open_record_folder

FLAGS = flags.FlagValues()
flags.DEFINE_string("data_dir", None, "The record folder. Required.", flag_values=FLAGS)
flags.DEFINE_string("split", "train", "The split to load.", flag_values=FLAGS)
flags.DEFINE_integer("batch_size", 16, "The number of images in a batch.", lower_bound=1, upper_bound=65_536, flag_values=FLAGS)
flags.DEFINE_list(
    "short_edges",
    [],
    "The short edges in pixels, of which each image draws one. By default the records' own.",
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "num_canvases", None, "The number of canvases, the sizes that batches have. By default 6.", lower_bound=1, flag_values=FLAGS
)
batch_flags.define(FLAGS)
flags.DEFINE_bool("benchmark", False, "Loads batches as training does, and measures the time of each stage.", flag_values=FLAGS)
flags.DEFINE_integer(
    "num_images", 500, "With --benchmark: the number of images that each of its parts loads.", lower_bound=1, flag_values=FLAGS
)
flags.DEFINE_enum(
    "cache",
    "none",
    ["none", "records", "decoded"],
    "With --benchmark: what is kept in memory, as in model.train.",
    flag_values=FLAGS,
)
flags.DEFINE_enum(
    "on_error",
    "fail",
    ["fail", "skip"],
    "With --benchmark: what happens at an image that cannot be read, as in model.train.",
    flag_values=FLAGS,
)
flags.mark_flags_as_required(["data_dir"], flag_values=FLAGS)


def main(_: list[str]) -> None:
    wrong = [edge for edge in FLAGS.short_edges if not edge.isdecimal()]
    if wrong:
        raise UserError(f"--short_edges={','.join(FLAGS.short_edges)}: {wrong[0]!r} is not a number of pixels")

    command.load_tensorflow()
    from pipeline.loading import measurement
    from pipeline.loading.options import LoadingOptions

    record_folder = open_record_folder(FLAGS.data_dir)
    short_edges = tuple(int(edge) for edge in FLAGS.short_edges) or None
    config = batch_flags.batch_config(FLAGS, record_folder, short_edges=short_edges, num_canvases=FLAGS.num_canvases)
    for line in measurement.describe(record_folder, FLAGS.split, config.data, batch_size=FLAGS.batch_size):
        command.say(line)
    if FLAGS.benchmark:
        options = LoadingOptions(on_error=FLAGS.on_error, cache=FLAGS.cache)
        measured = measurement.measure(
            record_folder,
            FLAGS.split,
            config.data,
            batch_size=FLAGS.batch_size,
            num_images=FLAGS.num_images,
            options=options,
            anchors=config.anchors,
        )
        for line in measured.lines():
            command.say(line)


if __name__ == "__main__":
    command.run(main, FLAGS, __doc__)
