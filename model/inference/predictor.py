"""One way to ask any model: a model directory, an exported SavedModel or a TFLite file.

    from model.inference.predictor import open_model

    model = open_model("run")  # a model directory, a SavedModel or a .tflite file
    for person in model("photograph.jpg"):  # a path, bytes, pixels, or a list of them
        print(person.score, person.box, person.keypoints["nose"])

All three answer in pixels of the image as a viewer shows it; the first two by the very same functions
(`model.inference.serving`).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import tensorflow as tf

from model.checkpoint_files import chosen_checkpoint
from model.checkpoint_names import Weights, Which, is_in_model_dir, model_dir_of
from model.config import AnyConfig
from model.inference import saved_model_folder, tflite_file
from model.inference.encoded_images import PIXELS_AT_ONCE, headers
from model.inference.image_input import ImageInput, decoded, encoded_image, image_size, without_rotation
from model.inference.people import People
from model.inference.serving import ServingModule, round_up
from model.matterport.decoding import decode_places, legacy_pixels
from model.matterport.masks import people_masks
from model.matterport.network import MaskRCNN
from model.model_dir import load_any
from model.network.keypoint_head import Decoder, decode_fast, decode_reference
from model.network.keypoint_rcnn import KeypointRCNN
from pipeline import data_config
from pipeline.command import UserError
from pipeline.skeleton import Skeleton

MAX_BATCH = 16
BATCH_PIXELS = 8 * 2**20  # of all canvases of a batch: eight of 800×1333
FEW_IMAGES = 8  # for which it does not pay to optimize the graph
Answer = Mapping[str, Any]  # arrays by name
DECODERS: Mapping[str, Decoder] = {"fast": decode_fast, "reference": decode_reference}  # values of --decoder


def people_of(answer: Answer, row: int, skeleton: Skeleton | None = None, category_id: int = 1) -> People:
    """One image's people out of a batch's answer: zero-padded arrays and `num_detections`."""
    count = int(answer["num_detections"][row])
    names = ("boxes", "scores", "keypoints", "keypoint_scores")
    boxes, scores, keypoints, keypoint_scores = (np.asarray(answer[name][row][:count], np.float32) for name in names)
    masks = tuple(answer["masks"][row]) if "masks" in answer else None
    labels = np.asarray(answer["classes"][row][:count], np.int32) if "classes" in answer else None
    return People(boxes, scores, keypoints, keypoint_scores, skeleton, category_id, masks, labels)


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A model ready to look at images.

    Attributes:
      config, skeleton: the model's.
      answer: encoded images of one canvas that store no rotation → the arrays of `ServingModule`, in each image's own pixels;
        and `masks`, lists of run lengths, if masks are looked for.
      canvas: an image's height and width → those of the canvas that it is placed on.
      max_batch: images per call of `answer`.
      score_threshold: people below it are left out.
      identity: of the model's files and the settings, for programs that keep answers; "" if it is not known.
    """

    config: AnyConfig
    skeleton: Skeleton
    answer: Callable[[Sequence[bytes]], Answer]
    canvas: Callable[[int, int], tuple[int, int]]
    max_batch: int = MAX_BATCH
    score_threshold: float = 0.0
    identity: str = ""

    @overload
    def __call__(self, images: ImageInput) -> People: ...  # type: ignore[overload-overlap]  # (a str is a sequence of str)
    @overload
    def __call__(self, images: Sequence[ImageInput]) -> list[People]: ...
    def __call__(self, images: ImageInput | Sequence[ImageInput]) -> People | list[People]:
        """Finds the people in an image, or in each image of a list.

        Args:
          images: one image, or a list of them, or an array [n, h, w, 3]. An image is the path of a JPEG or PNG file, its bytes,
            or its pixels, uint8 [h, w, 3] in the order RGB.

        Returns:
          The people in the image, in pixels of the image as a viewer shows it (a rotation that the file stores is applied); for
          a list, a list in its order.

        Raises:
          UserError: names the first image that cannot be read.
        """
        if isinstance(images, str | Path | bytes) or (isinstance(images, np.ndarray) and images.ndim < 4):
            return self([images])[0]
        given = list(images)
        names = [str(one) if isinstance(one, str | Path) else f"image {i + 1} of {len(given)}" for i, one in enumerate(given)]
        return self.predict([encoded_image(one, name) for one, name in zip(given, names, strict=True)], names)

    def predict(
        self, images: Sequence[bytes], names: Sequence[str] | None = None, *, as_stored: bool | Sequence[bool] = False
    ) -> list[People]:
        """Finds the people in JPEG or PNG files.

        Images are batched with those of the same canvas, so that an answer does not depend on an image's company.

        Args:
          images: the files' bytes.
          names: of the images, for messages.
          as_stored: whether answers are in the frame of the stored pixels, as those of a record are; else a rotation that the
            file stores is applied, as a viewer does. For all images, or for each.

        Raises:
          UserError: names the first image that cannot be read.
        """
        names = names or [f"image {i + 1} of {len(images)}" for i in range(len(images))]
        stored = [as_stored] * len(images) if isinstance(as_stored, bool) else as_stored
        images = [without_rotation(one, name, as_stored=s) for one, name, s in zip(images, names, stored, strict=True)]
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for i, (encoded, name) in enumerate(zip(images, names, strict=True)):
            groups[self.canvas(*image_size(encoded, name))].append(i)
        found: dict[int, People] = {}
        for canvas, members in groups.items():
            batch = max(1, min(self.max_batch, BATCH_PIXELS // (canvas[0] * canvas[1])))
            for first in range(0, len(members), batch):
                chosen = members[first : first + batch]
                answer = self._ask([images[i] for i in chosen], [names[i] for i in chosen])
                for row, i in enumerate(chosen):
                    people = people_of(answer, row, self.skeleton, self.config.inference.category_id)
                    found[i] = people.at_least(self.score_threshold)
        return [found[i] for i in range(len(images))]

    def on_device(self, device: str) -> Predictor:
        """The same predictor at work on one of TensorFlow's devices; it must not have been asked anything yet."""

        def answer(images: Sequence[bytes]) -> Answer:
            with tf.device(device):
                return self.answer(images)

        return dataclasses.replace(self, answer=answer)

    def _ask(self, images: Sequence[bytes], names: Sequence[str]) -> Answer:
        try:
            return self.answer(images)
        except tf.errors.InvalidArgumentError:
            for encoded, name in zip(images, names, strict=True):  # which of them was it?
                decoded(encoded, name)
            raise


def expect_few_images() -> None:
    """Tells TensorFlow, for the whole process, to take graphs as they are: for a program that asks for a few images and ends.

    Its optimizer takes a second of processor time before the first answer, a quarter of what that answer costs a small model.
    Over many images it may be worth that, on a GPU above all. Answers differ by rounding at most.
    """
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})


def model_predictor(model: KeypointRCNN, *, score_threshold: float | None = None, decode: Decoder = decode_fast) -> Predictor:
    """Asks a model in memory. Its functions are traced once: keep the predictor while the weights change.

    Args:
      model: a model, in training or loaded.
      score_threshold: people below it are left out (those below `inference.score_threshold` are in any case).
      decode: how heatmaps become keypoints.
    """
    return _of_module(ServingModule(model, decode), score_threshold)


def _of_module(module: ServingModule, score_threshold: float | None) -> Predictor:
    model, checked_files = module.model, module.checked_files()

    def function(images: Sequence[bytes]) -> Mapping[str, tf.Tensor]:
        sizes = [image_size(encoded, f"image {i + 1} of {len(images)}") for i, encoded in enumerate(images)]
        if len(images) > 1 and sum(height * width for height, width in sizes) > PIXELS_AT_ONCE:
            return module.serving_default(tf.constant(images, tf.string))  # type: ignore[no-any-return]  # (one after the other)
        return checked_files(tf.constant(images, tf.string), tf.constant(sizes, tf.int32))

    return _of_function(model.config, model.skeleton, function, score_threshold)


def open_model(
    path: str | Path,
    *,
    score_threshold: float | None = None,
    short_edge: int | None = None,
    max_edge: int | None = None,
    decoder: str = "fast",
    legacy_decoding: bool = False,
    masks: bool = False,
    which: Which = "newest",
    weights: Weights | None = None,
) -> Predictor:
    """Opens a model directory, a SavedModel (`<name>/<version>`, or `<name>`: its newest version) or a `.tflite` file.

    Args:
      path: of the model; also one checkpoint of a model directory, such as `run/checkpoints/step-2000`.
      score_threshold: people below it are left out; only a model directory can go below its `inference.score_threshold`.
      short_edge, max_edge: instead of the configuration's; a model directory only, an export has them fixed in its graph.
      decoder: of the keypoints, one of `DECODERS`; an export has "fast" in its graph.
      legacy_decoding: boxes, keypoints and masks as the original of the old network rounds them (see `model.matterport`).
      masks: whether to look for masks, too; these two are for a model directory of the old network.
      which: the checkpoint of a model directory: the newest, or the best of the evaluations made in training.
      weights: of that checkpoint: "average" for the moving average that training kept, "raw" for the weights themselves; by
        default the average if there is one.

    Raises:
      UserError: nothing there, not a model, or an option that this kind of model cannot follow.
    """
    path, wanted = Path(path), _Wanted(score_threshold, short_edge, max_edge, decoder, legacy_decoding, masks, which, weights)
    opened = _opened(path, wanted)
    settings = dataclasses.astuple(dataclasses.replace(wanted, score_threshold=opened.score_threshold))
    return dataclasses.replace(opened, identity=f"{path.resolve()} {_state_of_files(path, which)} {settings}")


@dataclasses.dataclass(frozen=True)
class _Wanted:
    """How `open_model` is asked to answer: its arguments."""

    score_threshold: float | None
    short_edge: int | None
    max_edge: int | None
    decoder: str
    legacy_decoding: bool
    masks: bool
    which: Which
    weights: Weights | None

    def refuse_old_networks_own(self, path: Path) -> None:
        """Raises: UserError, if something is wanted that only the old network can do."""
        for flag, given in (("--legacy_decoding", self.legacy_decoding), ("--masks", self.masks)):
            if given:
                raise UserError(
                    f"{flag}: wants a model directory that model.import_weights --source=matterport wrote, not {path}"
                )

    def refuse_what_an_export_has_fixed(self, path: Path) -> None:
        """Raises: UserError, if something is wanted that only a model directory can do."""
        if self.short_edge is not None or self.max_edge is not None:
            raise UserError(
                f"--model={path}: an export's image size is fixed; --short_edge and --max_edge want a model directory"
            )
        if self.which == "best":
            raise UserError(f"--which=best: {path} is an export, which has one set of weights; leave the flag out")
        if self.weights is not None:
            raise UserError(f"--weights={self.weights}: {path} is an export, which has one set of weights; leave the flag out")
        if self.decoder != "fast":
            raise UserError(
                f"--decoder={self.decoder}: {path} is an export, which decodes as --decoder=fast; give a model directory"
            )

    def applied_to(self, config: AnyConfig) -> Any:
        """The configuration with the sizes and the score that are wanted. Raises: UserError for sizes that contradict."""
        own = config.inference
        short_edge, max_edge = self.short_edge or own.short_edge, self.max_edge or own.max_edge
        if self.short_edge is not None and short_edge > max_edge:
            limit = f"--max_edge={max_edge}" if self.max_edge else f"the model's max edge, {max_edge}"
            raise UserError(
                f"--short_edge={short_edge}: is above {limit}, which would decide alone; lower it, or give a larger --max_edge"
            )
        lowest = own.score_threshold if self.score_threshold is None else min(own.score_threshold, self.score_threshold)
        changes: dict[str, Any] = {
            "score_threshold": lowest,
            "short_edge": min(short_edge, max_edge),
            "max_edge": max_edge,
        }
        return dataclasses.replace(config, inference=dataclasses.replace(own, **changes))  # type: ignore[arg-type]


def _state_of_files(path: Path, which: Which) -> str:
    """Changes when a model's files are written again: of their names, sizes and times, not of their contents."""
    folder = saved_model_folder.find(path)
    if path.is_file() and not is_in_model_dir(path):
        files = [path, path.with_suffix(".json")]
    elif folder is not None:
        files = sorted(file for file in folder.rglob("*") if file.is_file())
    else:
        own, checkpoint = model_dir_of(path), Path(chosen_checkpoint(path, which) or path)
        files = [own / "config.json", own / "skeleton.json", *sorted(checkpoint.parent.glob(f"{checkpoint.name}.*"))]
    digest = hashlib.sha256()
    for file in files:
        if file.exists():
            digest.update(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _opened(path: Path, wanted: _Wanted) -> Predictor:
    if is_in_model_dir(path):
        return _open_directory(path, wanted)
    if not path.exists():
        raise UserError(f"--model={path}: does not exist; give a model directory, a SavedModel or a .tflite file")
    saved_model = saved_model_folder.find(path)
    if saved_model is None and path.suffix != ".tflite":
        if not (path / "config.json").is_file():
            raise UserError(
                f"--model={path}: not a model: no config.json with checkpoints (a model directory), "
                "no saved_model.pb or <version>/saved_model.pb (a SavedModel), no .tflite file"
            )
        return _open_directory(path, wanted)
    wanted.refuse_old_networks_own(path)
    wanted.refuse_what_an_export_has_fixed(path)
    if saved_model is not None:
        return _open_saved_model(saved_model, wanted.score_threshold)
    return _open_tflite(path, wanted.score_threshold)


def _open_directory(path: Path, wanted: _Wanted) -> Predictor:
    model = load_any(path, wanted.which, weights=wanted.weights)
    if isinstance(model, MaskRCNN):
        if wanted.decoder != "fast":
            raise UserError(f"--decoder={wanted.decoder}: {path} holds the old network, which has its own; leave the flag out")
        model.config = wanted.applied_to(model.config)  # read when the functions are traced
        return _old_network_predictor(model, wanted)
    wanted.refuse_old_networks_own(path)
    model.config = wanted.applied_to(model.config)
    return model_predictor(model, score_threshold=wanted.score_threshold, decode=DECODERS[wanted.decoder])


def _old_network_predictor(model: MaskRCNN, wanted: _Wanted) -> Predictor:
    model.with_masks = wanted.masks
    module = ServingModule(model, decode_places, legacy_pixels) if wanted.legacy_decoding else ServingModule(model)
    predictor = _of_module(module, wanted.score_threshold)
    if not wanted.masks:
        return predictor

    def answer(images: Sequence[bytes]) -> Answer:
        found = predictor.answer(images)
        sizes = headers(tf.constant(images, tf.string))[1].numpy()
        return {**found, "masks": people_masks(found, sizes, legacy=wanted.legacy_decoding)}

    return dataclasses.replace(predictor, answer=answer)


def _of_function(
    config: AnyConfig,
    skeleton: Skeleton,
    function: Callable[[Sequence[bytes]], Mapping[str, tf.Tensor]],
    score_threshold: float | None,
) -> Predictor:
    """A predictor around a `serving_default`."""

    def answer(images: Sequence[bytes]) -> Answer:
        return {name: value.numpy() for name, value in function(images).items()}

    def canvas(height: int, width: int) -> tuple[int, int]:
        inference, rule = config.inference, config.data.resize
        size = data_config.resized_size(height, width, inference.short_edge, inference.max_edge, rule)
        return round_up(size[0]), round_up(size[1])

    return Predictor(config, skeleton, answer, canvas, score_threshold=_threshold(config, score_threshold))


def _threshold(config: AnyConfig, wanted: float | None) -> float:
    lowest = config.inference.score_threshold
    if wanted is not None and not 0 <= wanted <= 1:
        raise UserError(f"--score_threshold={wanted}: must be between 0 and 1")
    if wanted is not None and wanted < lowest:
        raise UserError(f"--score_threshold={wanted}: this model keeps nobody below {lowest} (inference.score_threshold)")
    return lowest if wanted is None else wanted


def _open_saved_model(path: Path, score_threshold: float | None) -> Predictor:
    folder = saved_model_folder.read(path)
    threshold = _threshold(folder.config, score_threshold)
    return _of_function(folder.config, folder.skeleton, folder.function(), threshold)


def _open_tflite(path: Path, score_threshold: float | None) -> Predictor:
    file = tflite_file.read(path)
    threshold = _threshold(file.config, score_threshold)
    answer, canvas = file.runner()
    return Predictor(file.config, file.skeleton, answer, canvas, max_batch=1, score_threshold=threshold)
