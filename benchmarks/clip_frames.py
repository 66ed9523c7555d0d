r"""What a frame of a clip costs: decoding, the network, drawing, writing, as `model.predict --input=clip.mp4` does them.

The clip is rendered; the network is a model's, or `r50_fpn` with random weights. Each stage works on all frames of a round
before the next one starts, so that its time is its own.

  python -m benchmarks.clip_frames --model=MODEL --frames=24
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import flags

from pipeline import command

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "model", None, "Model to ask; by default r50_fpn with random weights, keeping 10 people.", flag_values=FLAGS
)
flags.DEFINE_integer("frames", 8, "Frames of the clip.", 2, flag_values=FLAGS)
flags.DEFINE_integer("rounds", 3, "Rounds; the first warms up and is left out.", 2, flag_values=FLAGS)
flags.DEFINE_integer("batch_size", 4, "Frames that the network sees at once.", 1, flag_values=FLAGS)
flags.DEFINE_integer("width", 1280, "Of the frames, in pixels.", 96, flag_values=FLAGS)
flags.DEFINE_integer("height", 720, "Of the frames, in pixels.", 96, flag_values=FLAGS)


def render(path: Path, frames: int, width: int, height: int) -> None:
    """Writes a clip of three people who walk about."""
    import av

    from pipeline.synthetic.clip import render_clip

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in render_clip(0, frames, width, height):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame.pixels)))
        container.mux(stream.encode(None))


def measured_rounds(path: Path, folder: Path) -> list[dict[str, float]]:
    """Milliseconds a frame of each stage, in each round but the first."""
    from model.config import preset
    from model.inference.drawing_style import DrawingStyle
    from model.inference.predictor import model_predictor, open_model
    from model.inference.video_reader import ClipReader
    from model.inference.video_writer import ClipWriter
    from model.network.keypoint_rcnn import KeypointRCNN
    from pipeline.skeleton import COCO_PERSON

    if FLAGS.model:
        predictor = open_model(FLAGS.model)
    else:
        config = preset("r50_fpn")
        inference = dataclasses.replace(config.inference, max_detections=10, score_threshold=0.0)
        backbone = dataclasses.replace(config.backbone, norm="group")
        predictor = model_predictor(
            KeypointRCNN(dataclasses.replace(config, inference=inference, backbone=backbone), COCO_PERSON)
        )
    predictor = dataclasses.replace(predictor, max_batch=min(FLAGS.batch_size, predictor.max_batch))
    rounds = []
    for number in range(FLAGS.rounds):
        spent: dict[str, float] = {}
        with ClipReader(path) as reader:
            with _timed(spent, "decoding"):
                frames = list(reader.frames())
            with _timed(spent, "network"):
                people = predictor([frame.pixels for frame in frames])
            with _timed(spent, "drawing"):
                drawn = [DrawingStyle().draw(f.pixels, found) for f, found in zip(frames, people, strict=True)]
            with _timed(spent, "writing"), ClipWriter(folder / "drawn.mp4", reader) as writer:
                for frame, pixels in zip(frames, drawn, strict=True):
                    writer.add(frame, pixels)
        if number:
            rounds.append({stage: 1000 * seconds / len(frames) for stage, seconds in spent.items()})
    return rounds


@contextlib.contextmanager
def _timed(spent: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    spent[stage] = time.perf_counter() - started


def main(_: list[str]) -> None:
    from benchmarks.measuring import machine, table

    command.load_tensorflow()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "clip.mp4")
        render(path, FLAGS.frames, FLAGS.width, FLAGS.height)
        rounds = measured_rounds(path, Path(folder))
    whole = np.median([sum(one.values()) for one in rounds])
    rows = []
    for stage in rounds[0]:
        values = [one[stage] for one in rounds]
        median = float(np.median(values))
        rows.append([stage, f"{median:.1f}", f"{min(values):.1f}–{max(values):.1f}", f"{median / whole:.1%}"])
    network = FLAGS.model or "r50_fpn with random weights"
    print(f"{machine()}; {FLAGS.frames} frames of {FLAGS.width}×{FLAGS.height}, {network}\n")
    print(table(["stage", "ms a frame", "fastest–slowest round", "share"], rows))


if __name__ == "__main__":
    command.run(main, FLAGS, __doc__)
