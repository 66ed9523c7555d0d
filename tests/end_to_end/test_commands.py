"""Every command as people meet it: help, mistakes, and the whole path on a handful of images."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.listening import open_to_others, ports_of

REPOSITORY = Path(__file__).resolve().parents[2]
HELP_SECONDS = 3.0
# The flags that each command must explain.
FLAGS = {
    "pipeline.synthetic": ("output_dir", "num_images", "seed", "split", "width", "height", "num_workers", "overwrite"),
    "pipeline.make_tfrecords": (
        "annotations", "images", "output_dir", "split", "num_shards", "short_edges", "max_edge", "anchor_sizes", "limit",
        "on_error", "dataset_name", "overwrite",
    ),
    "pipeline.inspect_records": (
        "data_dir", "split", "output", "image_id", "count", "flipped", "anchors", "short_edge", "batches", "batch_size",
        "num_canvases", "seed", "stats", "verify", "set", "brightness", "contrast", "saturation", "hue",
    ),
    "pipeline.benchmark_loader": (
        "data_dir", "split", "batch_size", "short_edges", "num_canvases", "benchmark", "num_images", "cache", "on_error", "set",
        "brightness", "contrast", "saturation", "hue",
    ),
    "model.train": (
        "data_dir", "split", "model_dir", "preset", "init", "set", "steps", "batch_size", "learning_rate", "seed", "strategy",
        "precision", "save_every", "eval_split", "eval_annotations", "eval_every", "on_error", "cache", "data_service",
        "flip", "brightness", "contrast", "saturation", "hue", "jit_compile", "cpu_devices",
    ),
    "model.import_weights": ("source", "weights", "model_dir", "skeleton", "norm_epsilon", "set"),
    "model.evaluate": ("model", "data_dir", "split", "annotations", "results", "sigmas", "decoder", "output_dir"),
    "model.predict": (
        "model", "input", "output_dir", "annotations", "score_threshold", "draw", "decoder", "short_edge", "max_edge",
        "batch_size", "every", "from", "to", "track", "host", "port", "save", "subfolders", "line", "text", "names",
    ),
    "export.export_model": ("model", "output_dir", "name", "version", "formats", "tflite_height", "tflite_width"),
    "scripts.demo": ("output_dir", "num_train", "num_val", "steps"),
    "scripts.real_photographs": ("output_dir", "steps"),
    "export.compare_exports": ("model", "saved_model", "tflite", "images"),
}  # fmt: skip
# A tiny model that takes a few seconds to trace.
SHRUNKEN = (
    "data.short_edges=[96]", "data.max_edge=128", "data.sampled_anchors=32", "data.max_boxes=8", "backbone.width=8",
    "backbone.fpn_channels=16", "rpn.top_k_train=40", "rpn.top_k_test=40", "rpn.proposals_train=40", "rpn.proposals_test=30",
    "box_head.rois=16", "box_head.channels=32", "keypoint_head.rois=6", "keypoint_head.convolutions=1",
    "keypoint_head.channels=16", "inference.short_edge=96", "inference.max_edge=128", "inference.score_threshold=0.0",
    "inference.max_detections=5",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Ended:
    """A command that has ended; `errors` are the lines of stderr that are this project's."""

    status: int
    output: str
    errors: list[str]
    cpu_seconds: float


def run(module: str, *arguments: str, cwd: Path = REPOSITORY) -> Ended:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)  # where it is set, TensorFlow's own lines are wanted
    command = [sys.executable, "-m", module, *arguments]
    with (
        subprocess.Popen(
            command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process,
        ports_of(process) as ports,
    ):
        output, complaints = process.communicate()
    assert not open_to_others(ports), f"{module} can be reached from outside"
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    errors = [line for line in complaints.splitlines() if line.strip()]
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Ended(process.returncode, output, errors, spent)


def assert_one_line(ended: Ended, *words: str) -> None:
    """The contract of errors: status, one line, the value that is wrong."""
    assert ended.status not in (0, 130), ended
    assert len(ended.errors) == 1, "\n".join(ended.errors)
    assert ended.errors[0].startswith("error: ")
    for word in words:
        assert word in ended.errors[0]
    assert "Traceback" not in ended.output


@pytest.mark.parametrize("module", FLAGS)
def test_help_is_quick_and_names_the_flags(module: str) -> None:
    ended = run(module, "--help")
    assert ended.status == 0 and not ended.errors
    assert ended.cpu_seconds < HELP_SECONDS
    for flag in FLAGS[module]:
        assert f"--{flag}" in ended.output or f"--[no]{flag}" in ended.output
    assert f"-m {module} " in ended.output or "scripts/" in ended.output  # an example to copy


@pytest.mark.parametrize("module", FLAGS)
def test_wrong_flag(module: str, tmp_path: Path) -> None:
    # make_tfrecords asks Beam about flags that it does not know, once its own are complete.
    complete = ("--annotations=a.json", "--images=b", "--output_dir=c") if module == "pipeline.make_tfrecords" else ()
    assert_one_line(run(module, *complete, "--outptu_dir=x", cwd=tmp_path), "outptu_dir")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", [module for module in FLAGS if module not in ("scripts.demo", "scripts.real_photographs")])
def test_missing_flag(module: str, tmp_path: Path) -> None:
    assert_one_line(run(module, cwd=tmp_path), "--")
    assert not list(tmp_path.iterdir())


WRONG_INPUTS = {
    "synthetic: no images": ("pipeline.synthetic", ("--output_dir=out", "--num_images=0", "--seed=0"), "--num_images=0"),
    "make_tfrecords: missing file": (
        "pipeline.make_tfrecords", ("--annotations=nowhere.json", "--images=empty", "--output_dir=out"), "nowhere.json",
    ),
    "make_tfrecords: not COCO": (
        "pipeline.make_tfrecords", ("--annotations=a_list.json", "--images=empty", "--output_dir=out"), "a_list.json",
    ),
    "make_tfrecords: no images": (
        "pipeline.make_tfrecords", ("--annotations=one_image.json", "--images=empty", "--output_dir=out"), "1.jpg",
    ),
    "inspect_records: missing folder": ("pipeline.inspect_records", ("--data_dir=nowhere", "--verify"), "nowhere"),
    "inspect_records: empty folder": ("pipeline.inspect_records", ("--data_dir=empty", "--output=out/a.png"), "empty"),
    "benchmark_loader: missing folder": ("pipeline.benchmark_loader", ("--data_dir=nowhere", "--benchmark"), "nowhere"),
    "benchmark_loader: no number": ("pipeline.benchmark_loader", ("--data_dir=empty", "--short_edges=640,large"), "'large'"),
    "train: data service without scheme": (
        "model.train", ("--data_dir=empty", "--model_dir=out", "--data_service=localhost:5050"), "localhost:5050",
    ),
    "train: missing folder": ("model.train", ("--data_dir=nowhere", "--model_dir=out"), "nowhere"),
    "train: empty folder": ("model.train", ("--data_dir=empty", "--model_dir=out"), "empty"),
    "train: start from a text": ("model.train", ("--data_dir=empty", "--model_dir=out", "--init=a_list.json"), "a_list.json"),
    "import_weights: missing file": (
        "model.import_weights", ("--source=torchvision", "--weights=nowhere.pth", "--model_dir=out"), "nowhere.pth",
    ),
    "import_weights: a text": (
        "model.import_weights", ("--source=detectron2", "--weights=a_list.json", "--model_dir=out"), "a_list.json",
    ),
    "evaluate: missing file": (
        "model.evaluate", ("--model=empty", "--data_dir=empty", "--annotations=nowhere.json"), "",
    ),
    "evaluate: empty folder": (
        "model.evaluate", ("--model=empty", "--data_dir=empty", "--annotations=one_image.json"), "empty",
    ),
    "evaluate: results that are none": (
        "model.evaluate", ("--annotations=one_image.json", "--results=one_image.json"), "must be a JSON list",
    ),
    "evaluate: missing results": (
        "model.evaluate", ("--annotations=one_image.json", "--results=nowhere.json"), "nowhere.json",
    ),
    "evaluate: sigmas that are none": (
        "model.evaluate", ("--annotations=one_image.json", "--results=a_list.json", "--sigmas=0.1,x"), "--sigmas=0.1,x",
    ),
    "predict: missing model": ("model.predict", ("--model=nowhere", "--input=one.png", "--output_dir=out"), "nowhere"),
    "predict: no such decoder": (
        "model.predict", ("--model=empty", "--input=empty", "--output_dir=out", "--decoder=slow"), "--decoder=slow",
    ),
    "predict: missing annotations": (
        "model.predict", ("--model=empty", "--input=one.png", "--output_dir=out", "--annotations=nowhere.json"), "nowhere.json",
    ),
    "predict: annotations of other images": (
        "model.predict", ("--model=empty", "--input=one.png", "--output_dir=out", "--annotations=one_image.json"), "'1.jpg'",
    ),
    "predict: a threshold above 1": (
        "model.predict", ("--model=empty", "--input=one.png", "--output_dir=out", "--score_threshold=2"), "score_threshold",
    ),
    "predict: a text called a clip": (
        "model.predict", ("--model=empty", "--input=text.mp4", "--output_dir=out"), "text.mp4: cannot be opened as a video",
    ),
    "predict: a time that is none": (
        "model.predict", ("--model=empty", "--input=text.mp4", "--output_dir=out", "--from=soon"), "--from=soon",
    ),
    "predict: every other image": (
        "model.predict", ("--model=empty", "--input=one.png", "--output_dir=out", "--every=2"), "--every: is not for an image",
    ),
    "predict: a store that nobody knows": (
        "model.predict", ("--model=empty", "--input=foo://bucket/x", "--output_dir=out"), "no filesystem for foo://",
    ),
    "evaluate: both model and results": (
        "model.evaluate", ("--annotations=one_image.json", "--results=a_list.json", "--model=empty"), "give one of them",
    ),
    "predict: empty folder": ("model.predict", ("--model=empty", "--input=empty", "--output_dir=out"), "empty"),
    "export: missing model": ("export.export_model", ("--model=nowhere", "--output_dir=out"), "nowhere"),
    "export: empty folder": ("export.export_model", ("--model=empty", "--output_dir=out"), "empty"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_INPUTS)
def test_wrong_input(case: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a_list.json").write_text("[]")
    (tmp_path / "one.png").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("no clip")
    category = {"id": 1, "name": "person", "keypoints": ["nose"], "skeleton": []}
    image = {"id": 1, "file_name": "1.jpg", "height": 20, "width": 30}
    person = {
        "id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 10, 10], "area": 50, "iscrowd": 0, "num_keypoints": 1,
        "keypoints": [5, 5, 2],
    }  # fmt: skip
    content = {"images": [image], "annotations": [person], "categories": [category]}
    (tmp_path / "one_image.json").write_text(json.dumps(content))

    module, arguments, word = WRONG_INPUTS[case]
    assert_one_line(run(module, *arguments, cwd=tmp_path), word)
    left = [path for path in tmp_path.glob("out/**/*") if path.is_file()]
    assert not [path for path in left if "unfinished" not in str(path)]  # nothing half-written under a final name


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_whole_path(tmp_path: Path) -> None:
    """Images → records → training → evaluation → export → prediction; a second run finds what is finished."""

    def done(module: str, *arguments: str) -> str:
        ended = run(module, *arguments, cwd=tmp_path)
        assert ended.status == 0, ended
        return ended.output

    annotations = {split: f"--annotations=data/annotations/person_keypoints_{split}.json" for split in ("train", "val")}
    for split, count in (("train", 16), ("val", 8)):
        render = ("pipeline.synthetic", "--output_dir=data", f"--split={split}", f"--num_images={count}", "--seed=3")
        done(*render)
        convert = (
            "pipeline.make_tfrecords", annotations[split], f"--images=data/{split}", "--output_dir=records",
            f"--split={split}", "--short_edges=96", "--max_edge=128",
        )  # fmt: skip
        done(*convert)
    assert "finished" in done(*render)
    index = (tmp_path / "records" / "index-val.npy").stat()
    done(*convert)
    assert (tmp_path / "records" / "index-val.npy").stat().st_mtime_ns == index.st_mtime_ns

    measured = done("pipeline.benchmark_loader", "--data_dir=records", "--batch_size=4", "--num_images=8", "--benchmark")
    assert "images per second, with" in measured and "% padding" in measured

    train = [
        "model.train", "--data_dir=records", "--model_dir=model", "--preset=tiny", "--batch_size=2", "--steps=3",
        "--flip", "--hue=0.1", "--eval_split=val", "--eval_annotations=data/annotations/person_keypoints_val.json",
        *(f"--set={setting}" for setting in SHRUNKEN),
    ]  # fmt: skip
    done(*train)
    lines = [json.loads(line) for line in (tmp_path / "model" / "metrics.jsonl").read_text().splitlines()]
    assert {line["kind"] for line in lines} == {"train", "eval"}
    data = json.loads((tmp_path / "model" / "config.json").read_text())["data"]
    assert data["flip"] and data["hue"] == 0.1
    assert "nothing to do" in done(*train)

    evaluate = ("--data_dir=records", "--split=val", annotations["val"], "--output_dir=evaluation")
    done("export.export_model", "--model=model", "--output_dir=exported", "--check_images=data/val")
    for model in ("model", "exported/keypoint_rcnn/1", "exported/keypoint_rcnn.tflite"):
        done("model.evaluate", f"--model={model}", *evaluate)
        figures = json.loads((tmp_path / "evaluation" / "evaluation-val.json").read_text())
        assert figures["model"] == model and figures["counts"]["images"] == 8 and 0 <= figures["bbox"]["AP"] <= 1
        done("model.predict", f"--model={model}", "--input=data/val", "--output_dir=predicted", "--score_threshold=0")
        people = json.loads((tmp_path / "predicted" / "predictions.json").read_text())
        assert {person["image_id"] for person in people} <= set(range(1, 9))
        assert len(list((tmp_path / "predicted" / "pictures").iterdir())) == 8
