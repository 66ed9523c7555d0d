"""Sound inputs of every kind that the commands read, small, for `scripts.mutations` to damage."""

from __future__ import annotations

import io
import json
import pickle
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.model.weights.torch_format import save_legacy, save_zip, tensor
from tests.model.weights.torch_weights import torchvision_state

# A model that is built in a second.
SMALL = (
    "data.short_edges=[64]", "data.max_edge=96", "data.sampled_anchors=32", "data.max_boxes=8", "backbone.width=8",
    "backbone.fpn_channels=16", "rpn.top_k_train=40", "rpn.top_k_test=40", "rpn.proposals_train=40", "rpn.proposals_test=30",
    "box_head.rois=16", "box_head.channels=32", "keypoint_head.rois=6", "keypoint_head.convolutions=1",
    "keypoint_head.channels=16", "inference.short_edge=64", "inference.max_edge=96", "inference.max_detections=5",
)  # fmt: skip
TF_CONFIG = {"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}


def make_inputs(folder: Path) -> None:
    """Fills a folder; `scripts.mutation_targets` says what lies where."""
    _images_and_records(folder)
    _model(folder)
    _exports(folder)
    _weights(folder / "weights")
    (folder / "tf_config.json").write_text(json.dumps(TF_CONFIG))
    (folder / "settings.txt").write_text("data.short_edges=[640, 672]")


def _images_and_records(folder: Path) -> None:
    from pipeline.coco import read_coco
    from pipeline.synthetic.dataset import Arguments, write_dataset
    from pipeline.writing.conversion import convert
    from pipeline.writing.conversion_config import ConversionConfig
    from pipeline.writing.shard_writer import noted_images

    arguments = Arguments(num_images=6, seed=1, split="train", width=128, height=96)
    write_dataset(folder / "data", arguments, num_workers=1)
    annotations, images = folder / "data" / "annotations" / "person_keypoints_train.json", folder / "data" / "train"
    truth = json.loads(annotations.read_text())
    config = ConversionConfig("small", num_shards=2, short_edges=(64,), max_edge=96)
    convert(annotations, images, folder / "records", "train", config)
    (folder / "records" / "errors-train.jsonl").write_text('{"image_id": 7, "file": "a.jpg", "reason": "no such file"}\n')

    keypoints = {
        a["id"]: [v for k in range(17) for v in (*a["keypoints"][3 * k : 3 * k + 2], 1.0)] for a in truth["annotations"]
    }
    names = {image["id"]: image["file_name"] for image in truth["images"]}
    results = [
        {
            "image_id": a["image_id"], "file_name": names[a["image_id"]], "category_id": a["category_id"], "bbox": a["bbox"],
            "keypoints": keypoints[a["id"]], "score": 0.9,
        }
        for a in truth["annotations"]
    ]  # fmt: skip
    (folder / "predictions.json").write_text(json.dumps(results))

    work = folder / "work"
    work.mkdir()
    coco = read_coco(annotations)
    (work / "images-00000").write_text(noted_images([(image, None) for image in coco.images]))
    metadata = json.loads((folder / "records" / "pipeline.json").read_text())
    shard = metadata["splits"]["train"]["shards"][0]
    rows = np.load(folder / "records" / "index-train.npy")
    facts = shard | {
        "index": [list(row)[1:] for row in rows[rows["shard"] == 0].tolist()],
        "errors": [],
        "ambiguous": [],
        "counts": {"persons": 1},
    }
    (work / "facts-00000.json").write_text(json.dumps(facts))
    (work / shard["file"]).write_bytes((folder / "records" / shard["file"]).read_bytes())

    name = sorted(path.name for path in images.iterdir())[0]
    with zipfile.ZipFile(folder / "images.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(images / name, f"train/{name}")
        archive.writestr("train/stored.jpg", (images / name).read_bytes(), zipfile.ZIP_STORED)
    _encoded_images(folder, Image.open(images / name))


def _encoded_images(folder: Path, image: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x829A] = 6, "a maker", (1, 50)
    exif.get_ifd(0x8769)[0x9204] = (-1, 3)  # a signed rational
    for name in ("plain.jpg", "plain.png"):
        image.save(folder / name)
        image.save(folder / name.replace("plain", "exif"), exif=exif)
    image.convert("CMYK").save(folder / "cmyk.jpg", progressive=True)
    wide = np.asarray(image.convert("L"), np.uint16) * 257
    content = io.BytesIO()
    Image.fromarray(wide).save(content, "PNG")
    (folder / "grey16.png").write_bytes(content.getvalue())
    image.convert("P").save(folder / "palette.png")


def _model(folder: Path) -> None:
    import tensorflow as tf

    from model import config as config_lib
    from model.model_dir import checkpoint_of, prepare_model_dir
    from model.network.keypoint_rcnn import KeypointRCNN
    from pipeline.config_overrides import override
    from pipeline.skeleton import COCO_PERSON

    config = override(config_lib.preset("tiny"), SMALL)
    model_dir = folder / "model"
    prepare_model_dir(model_dir, config, COCO_PERSON)
    tf.keras.utils.set_random_seed(1)
    model = KeypointRCNN(config, COCO_PERSON)
    manager = tf.train.CheckpointManager(checkpoint_of(model), str(model_dir / "checkpoints"), 2, checkpoint_name="step")
    manager.save(checkpoint_number=0)
    (model_dir / "weights.json").write_text(json.dumps({"source": "torchvision", "licence": "BSD-3", "left_over": ["a"]}))
    lines = [{"kind": kind, "step": step, "loss": 1.5} for step in (1, 2, 3) for kind in ("train", "eval")]
    (model_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _exports(folder: Path) -> None:
    """The model as a SavedModel and as a TFLite file with what lies beside it, which nobody has compared."""
    import shutil

    from export import client_notes, saved_model, tflite
    from export.formats import sha256_of
    from model.inference.serving import ServingModule
    from model.model_dir import load_model

    model = load_model(folder / "model")
    saved_model.write_saved_model(ServingModule(model), folder / "exported" / "1", {}, "small")
    shutil.rmtree(folder / "exported" / "1" / "assets.extra")  # of servers alone
    path = folder / "exported.tflite"
    path.write_bytes(tflite.convert(model, 64, 96, folder))
    notes = client_notes.notes_for_pixels(model.config, model.skeleton) | {"sha256": sha256_of(path)}
    (folder / "exported.json").write_text(json.dumps(notes))


def _weights(folder: Path) -> None:
    import h5py

    folder.mkdir()
    state = torchvision_state()
    tensors = {name: tensor(value) for name, value in state.items()}
    save_zip(folder / "a.pth", tensors)
    save_legacy(folder / "legacy.pth", tensors)
    (folder / "a.pkl").write_bytes(pickle.dumps({"model": dict(state), "__author__": "x"}, protocol=2))
    _save_safetensors(folder / "a.safetensors", state)
    with h5py.File(folder / "a.h5", "w") as file:
        for name in list(state)[:12]:
            file[name.replace(".", "/")] = state[name]


def _save_safetensors(path: Path, state: dict[str, NDArray[Any]]) -> None:
    header: dict[str, Any] = {}
    offset = 0
    for name, value in state.items():
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [offset, offset + value.nbytes]}
        offset += value.nbytes
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(value.tobytes() for value in state.values()))
