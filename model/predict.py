"""Finds people and their keypoints in images and clips.

  python -m model.predict --model=MODEL --input=FOLDER_OR_FILE --output_dir=OUT
  python -m model.predict --model=MODEL --input=clip.mp4 --output_dir=OUT --track
  python -m model.predict --model=MODEL --input=camera:0 --output_dir=OUT

MODEL is a model directory, a SavedModel or a .tflite file. The command writes OUT/predictions.json, one entry per person in
COCO's results format, and OUT/pictures/, where left limbs are orange, right ones blue, and unsure points hollow. Everything is
in pixels of the image as a viewer shows it: a rotation that a file stores (EXIF) is applied.

image_id comes from --annotations, by the file's name. Without that flag it is the number that ends the file's name, else the
file's position in the sorted folder, from 0; if that gives two files one id, every file's id is its position.

Of a clip, OUT/predictions.jsonl has a line per frame, with its time in seconds and its people in COCO's results format
(image_id is the number of the frame), and OUT/clip.mp4 shows them at the source's size, times and rotation, with its sound.
A camera (camera:0, or rtsp://…) is shown live on a web page of this machine until Ctrl-C, and what was found is in
OUT/predictions.jsonl. Clips and cameras need pip install '.[video]'.

An image that cannot be read is named, and the others are done. Answers appear as they are made, in
OUT/predictions.unfinished.jsonl; a run that was stopped goes on from there.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from model.checkpoint_names import define_weights, define_which
from pipeline import command

if TYPE_CHECKING:
    from model.inference.drawing_style import DrawingStyle
    from model.inference.predictor import Predictor

SCORE_THRESHOLD = 0.5  # what suits drawings
LARGEST_EDGE = 8192  # pixels; the most that a conversion prepares

FLAGS = flags.FlagValues()
flags.DEFINE_string("model", None, "Model directory, SavedModel or .tflite file. Required.", flag_values=FLAGS)
flags.DEFINE_string(
    "input",
    None,
    "Image; folder, glob or zip of .jpg, .jpeg and .png, also as a URL (gs://, s3://…); clip; or camera (camera:0, rtsp://…). "
    "Required.",
    flag_values=FLAGS,
)
flags.DEFINE_string("output_dir", None, "Folder to write to. Required.", flag_values=FLAGS)
flags.DEFINE_string(
    "annotations",
    None,
    "COCO JSON that gives the images their ids, by file name. Only its images are looked at; it needs no people.",
    flag_values=FLAGS,
)
flags.DEFINE_float(
    "score_threshold",
    None,
    "Least score of a person who is kept. By default 0.5, or the model's own inference.score_threshold if that is higher.",
    0,
    1,
    flag_values=FLAGS,
)
flags.DEFINE_enum(
    "decoder",
    "fast",
    ["fast", "reference"],
    "How heatmaps become keypoints: at a fixed cost, or pixel by pixel as published (reference; model directories only).",
    flag_values=FLAGS,
)
flags.DEFINE_bool(
    "draw",
    True,
    "Draws the people; --nodraw writes only predictions.json, and removes older drawings.",
    flag_values=FLAGS,
)
flags.DEFINE_multi_enum(
    "save",
    ["images"],
    ["json", "images", "crops"],
    "What to write beside predictions.json, of images: images (drawn, in pictures/), crops (each person's box, in crops/), or "
    "json (nothing). Give the flag twice for both.",
    flag_values=FLAGS,
)
flags.DEFINE_bool("subfolders", False, "Takes the images of folders below --input, too.", flag_values=FLAGS)
flags.DEFINE_integer(
    "short_edge",
    None,
    "Pixels of the shorter side after resizing; for model directories only. By default the model's.",
    1,
    LARGEST_EDGE,
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "max_edge",
    None,
    "Most pixels of the longer side after resizing; for model directories only. By default the model's.",
    1,
    LARGEST_EDGE,
    flag_values=FLAGS,
)
flags.DEFINE_bool(
    "legacy_decoding",
    False,
    "Rounds boxes and keypoints to whole pixels as the original does; for the network of --source=matterport only.",
    flag_values=FLAGS,
)
flags.DEFINE_bool(
    "masks",
    False,
    "Adds each person's mask to predictions.json (segmentation, run lengths); for the network of --source=matterport only.",
    flag_values=FLAGS,
)
define_which(FLAGS)
define_weights(FLAGS)
flags.DEFINE_integer(
    "batch_size",
    None,
    "Most images or frames that the network sees at once. By default 16 images, 8 frames.",
    1,
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "every",
    None,
    "Looks at every N-th frame of a clip; the frames between show the people of the last one. By default 1.",
    1,
    flag_values=FLAGS,
)
flags.DEFINE_string("from", None, "Time in a clip, 12.5 or 1:02.5, before which frames are left out.", flag_values=FLAGS)
flags.DEFINE_string(
    "to", None, "Time in a clip from which on frames are left out; of a camera, when to stop.", flag_values=FLAGS
)
flags.DEFINE_bool(
    "track",
    False,
    "Gives the people of a clip or camera numbers (track_id) that they keep from frame to frame.",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "host",
    "127.0.0.1",
    "Address that the live page of a camera listens on. By default it is for this machine alone; 0.0.0.0 is for everybody.",
    flag_values=FLAGS,
)
flags.DEFINE_integer("port", 8008, "Port of the live page; 0 takes any that is free.", 0, 65535, flag_values=FLAGS)
flags.DEFINE_integer(
    "line", None, "Thickness of drawn lines in pixels. By default what suits the image.", 1, 100, flag_values=FLAGS
)
flags.DEFINE_integer(
    "text", None, "Height of drawn letters in pixels. By default what suits the image.", 5, 500, flag_values=FLAGS
)
flags.DEFINE_bool("names", False, "Writes each keypoint's name beside it.", flag_values=FLAGS)
flags.mark_flags_as_required(["model", "input", "output_dir"], flag_values=FLAGS)


# Flags that mean something for one kind of input only.
KINDS = {
    "an image or a folder": ("annotations", "batch_size", "draw", "save", "subfolders"),
    "a clip": ("every", "from", "to", "track", "batch_size", "draw"),
    "a camera": ("to", "track", "host", "port"),
}


def main(_rest: list[str]) -> None:
    from model.inference.camera import is_camera
    from model.inference.video_reader import SUFFIXES

    path = Path(FLAGS.input)
    kind, predict = "an image or a folder", _images
    if is_camera(FLAGS.input):
        kind, predict = "a camera", _camera
    elif path.suffix.lower() in SUFFIXES and not path.is_dir():
        kind, predict = "a clip", _clip
    for name in sorted({name for names in KINDS.values() for name in names} - set(KINDS[kind])):
        if FLAGS[name].present:
            raise command.UserError(f"--{name}: is not for {kind}, which --input={FLAGS.input} is; leave it out")
    predict()


def _images() -> None:
    logging.getLogger().setLevel(logging.ERROR)  # Beam warns of clients of cloud services that are not installed
    command.load_tensorflow()
    from model.inference.image_folder import predict_files, summary_text
    from model.inference.image_names import annotated, numbered, read_image_names
    from model.inference.image_source import find_images
    from model.inference.predictor import FEW_IMAGES, expect_few_images

    save = set(FLAGS.save if FLAGS.draw else [what for what in FLAGS.save if what != "images"])
    named = FLAGS.annotations is not None  # whose names may lead into folders below
    files, notes = find_images(FLAGS.input, subfolders=FLAGS.subfolders, may_be_empty=named)
    if FLAGS.annotations is None:
        images, rule = numbered(files)
        notes.append(rule)
    else:
        images, left_out = annotated(Path(FLAGS.input), files, read_image_names(FLAGS.annotations), FLAGS.annotations)
        notes += left_out
    if len(images) <= FEW_IMAGES:
        expect_few_images()
    predictor = _predictor()
    if FLAGS.batch_size is not None:
        predictor = dataclasses.replace(predictor, max_batch=min(FLAGS.batch_size, predictor.max_batch))
    summary = predict_files(
        predictor,
        images,
        Path(FLAGS.output_dir),
        draw="images" in save,
        crop="crops" in save,
        style=_style(),
        notes=notes,
    )
    print(summary_text(summary))
    if summary.unreadable:
        count = f"{len(summary.unreadable)} of {len(images)} images"
        raise command.UserError(f"{count} could not be read and are left out; the first: {summary.unreadable[0]}")


def _clip() -> None:
    from model.inference.video_reader import ClipReader, seconds_of

    path = Path(FLAGS.input)
    start, end = seconds_of(FLAGS["from"].value, "--from"), seconds_of(FLAGS["to"].value, "--to")
    with ClipReader(path, start, end):  # what is no clip is told before the seconds that TensorFlow takes
        pass
    command.load_tensorflow()
    from model.inference.video import BATCH_SIZE, predict_clip

    summary = predict_clip(
        _predictor(),
        path,
        Path(FLAGS.output_dir),
        draw=FLAGS.draw,
        style=_style(),
        every=FLAGS.every or 1,
        start=start,
        end=end,
        batch_size=FLAGS.batch_size or BATCH_SIZE,
        track=FLAGS.track,
    )
    print(summary)
    if summary.broken:
        raise command.UserError(f"{path}: {summary.broken}; what came before is done, copy the clip again for the rest")


def _camera() -> None:
    from model.inference.video_reader import seconds_of

    seconds = seconds_of(FLAGS.to, "--to")
    command.load_tensorflow()
    from model.inference.watching import watch

    summary = watch(
        _predictor(),
        FLAGS.input,
        Path(FLAGS.output_dir),
        host=FLAGS.host,
        port=FLAGS.port,
        style=_style(),
        seconds=seconds,
        track=FLAGS.track,
    )
    print(summary)


def _style() -> DrawingStyle:
    from model.inference.drawing_style import DrawingStyle

    return DrawingStyle(FLAGS.line, FLAGS.text, FLAGS.names)


def _predictor() -> Predictor:
    from model.inference.predictor import open_model

    predictor = open_model(
        FLAGS.model,
        score_threshold=FLAGS.score_threshold,
        short_edge=FLAGS.short_edge,
        max_edge=FLAGS.max_edge,
        decoder=FLAGS.decoder,
        legacy_decoding=FLAGS.legacy_decoding,
        masks=FLAGS.masks,
        which=FLAGS.which,
        weights=FLAGS.weights,
    )
    if FLAGS.score_threshold is None:
        predictor = dataclasses.replace(predictor, score_threshold=max(SCORE_THRESHOLD, predictor.score_threshold))
    return predictor


if __name__ == "__main__":
    command.run(main, FLAGS, __doc__, url_flags={"input"})
