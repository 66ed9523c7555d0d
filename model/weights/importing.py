"""From a published file of weights to a model directory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from model import config as config_lib
from model import model_dir as model_dir_lib
from model.config import Config
from model.network.keypoint_rcnn import KeypointRCNN
from model.weights import families, layout, names
from model.weights.names import Family, Tensors, told
from model.weights.pickle_reader import RefusedError
from model.weights.published import Digests, digests, named_otherwise, note, published_as
from model.weights.weight_files import read_weights
from pipeline import config_overrides
from pipeline.anchors import cell_anchors
from pipeline.command import UserError
from pipeline.files import an_object, checked_json
from pipeline.skeleton import COCO_PERSON, Skeleton

SOURCES: Mapping[str, Family] = {"torchvision": names.TORCHVISION, "detectron2": names.DETECTRON2}

# What older files of Detectron2 hold besides weights.
_CELL_ANCHORS = "proposal_generator.anchor_generator.cell_anchors."


def import_model(
    source: str,
    weights: str | Path,
    model_dir: str | Path,
    *,
    skeleton_file: str | Path | None = None,
    norm_epsilon: float | None = None,
    assignments: Sequence[str] = (),
    report: Callable[[str], None] = print,
) -> None:
    """Writes a model directory, with a checkpoint at step 0, from a file of a whole Keypoint R-CNN.

    Args:
      model_dir: must not exist, or be empty.
      source, weights, skeleton_file, norm_epsilon, assignments, report: as `imported` takes them.

    Raises:
      UserError: as `imported`; or the directory holds something already.
    """
    model_dir = Path(model_dir)
    model_dir_lib.check_new(model_dir)
    model, origin = imported(
        source, weights, skeleton_file=skeleton_file, norm_epsilon=norm_epsilon, assignments=assignments, report=report
    )
    model_dir_lib.write_new(model_dir, model, config_lib.to_json(model.config), model.skeleton, origin)


def imported(
    source: str,
    weights: str | Path,
    *,
    skeleton_file: str | Path | None = None,
    norm_epsilon: float | None = None,
    assignments: Sequence[str] = (),
    report: Callable[[str], None] = print,
) -> tuple[KeypointRCNN, dict[str, Any]]:
    """The model of a file of a whole Keypoint R-CNN, and where its weights come from (see `published.note`).

    Args:
      source: the family, a key of `SOURCES`.
      weights: the file.
      skeleton_file: the keypoint set (see `read_skeleton`); None for COCO's.
      norm_epsilon: of the batch norms; None for 0 in torchvision's COCO_V1 file, known by its sha256, and 1e-5 in others.
      assignments: as `config_overrides.override` takes them: values that the file cannot say and that differ from the
        family's.
      report: called with each line of what was found.

    Raises:
      UserError: the file cannot be read, is of another family or size, or lacks a tensor.
    """
    weights, family = Path(weights), SOURCES[source]
    tensors = read_weights(weights)
    found = digests(weights)
    try:
        by_path, source_names, left_over = names.renamed(tensors, family)
        _check_whole(by_path, tensors, family)
        try:
            config = _config(source, by_path, _epsilon(weights, found, norm_epsilon, report))
        except UserError as error:  # a size that no network has
            raise RefusedError(str(error)) from None
        config = config_overrides.override(config, assignments)
        _check_beside_weights(tensors, config)
        skeleton = skeleton_for(layout.num_keypoints(by_path), skeleton_file, report)
        by_path = layout.complete(by_path, family, config.backbone.norm_epsilon)
        shapes = variable_shapes(config, skeleton)  # before the model is made: what one tensor says may be far too large
        values = layout.values(by_path, family, shapes, source_names, box_resolution=config.box_head.resolution)
    except RefusedError as error:
        raise UserError(f"{weights}: {error}") from None
    model = KeypointRCNN(config, skeleton)
    variables = model.variables_by_path()
    for path, value in values.items():
        variables[path].assign(value)
    left_over += [source_names[path] for path in by_path if path not in variables]
    report(f"{len(tensors) - len(left_over)} tensors of {weights.name} fill all {len(variables)} variables; {told(left_over)}")
    return model, note(source, weights, found, left_over)


def variable_shapes(config: Config, skeleton: Skeleton) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's variables by path. Allocates none of them."""
    with keras.StatelessScope(initialize_variables=False):
        parts = KeypointRCNN(config, skeleton).parts()
    return {variable.path: tuple(variable.shape) for part in parts for variable in part.variables}


def _check_whole(by_path: Tensors, tensors: Tensors, family: Family) -> None:
    if "keypoint.deconv/kernel" in by_path:
        return
    of = names.recognise(tensors)
    if "backbone.conv1/kernel" in names.renamed(tensors, of)[0] and not any("roi_heads" in name for name in tensors):
        raise RefusedError("is a backbone alone, with which training can start: python -m model.train --init=FILE")
    if of is not family:
        raise RefusedError(f"has the names of {of.name}, not of {family.name}: give --source={of.name}")
    raise RefusedError("has no keypoint head: a detector of another kind, or only a part of a file")


def _config(source: str, by_path: Tensors, norm_epsilon: float) -> Config:
    size = layout.architecture(by_path)
    config = families.torchvision(size) if source == "torchvision" else families.detectron2(size)
    return dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, norm_epsilon=norm_epsilon))


def _epsilon(weights: Path, found: Digests, given: float | None, report: Callable[[str], None]) -> float:
    published = published_as(found)
    namesake = named_otherwise(weights, found)
    if namesake is not None:
        report(f"{weights.name} is not the published file of that name: sha256 {found.sha256[:8]}…, md5 {found.md5[:6]}…")
    if given is not None:
        return given
    epsilon = published.norm_epsilon if published else 1e-5
    report(f"batch norm's epsilon: {epsilon:g}" + (f", as for {published.name}" if published else ""))
    return epsilon


def _check_beside_weights(tensors: Tensors, config: Config) -> None:
    """Compares what older files of Detectron2 say of pixels and anchors with the configuration. Raises: RefusedError."""
    backbone = config.backbone
    expected: dict[str, Any] = {"pixel_mean": backbone.pixel_mean, "pixel_std": backbone.pixel_std}
    expected |= {f"{_CELL_ANCHORS}{level}": cells for level, cells in enumerate(cell_anchors(config.anchors))}
    for name, value in expected.items():
        if name in tensors and not np.allclose(np.ravel(tensors[name]), np.ravel(value), atol=1e-3):
            said = ", ".join(f"{number:g}" for number in np.ravel(tensors[name])[:4])
            raise RefusedError(
                f"says {name} = {said}…, where this import has {', '.join(f'{n:g}' for n in np.ravel(value)[:4])}…: "
                "set backbone.pixel_mean, backbone.pixel_std, backbone.pixel_order or anchors with --set as it was trained"
            )


def skeleton_for(number: int, file: str | Path | None, report: Callable[[str], None]) -> Skeleton:
    """The keypoint set of weights for `number` keypoints: the one of `file`, or COCO's.

    Raises:
      UserError: `file` has another number, or none.
      RefusedError: another number than COCO's, and no file.
    """
    if file is not None:
        skeleton = read_skeleton(file)
        if skeleton.num_keypoints != number:
            raise UserError(f"--skeleton={file}: has {skeleton.num_keypoints} keypoints, the weights have {number}")
        return skeleton
    if number != COCO_PERSON.num_keypoints:
        raise RefusedError(
            f"has {number} keypoints; name them with --skeleton=FILE, the skeleton.json of a model or pipeline.json of records"
        )
    report("its 17 keypoints are taken for COCO's; --skeleton=FILE names others")
    return COCO_PERSON


def read_skeleton(file: str | Path) -> Skeleton:
    """A keypoint set from a model directory's `skeleton.json`, or from the `pipeline.json` of records.

    Raises:
      UserError: the file is missing, or holds no keypoint set.
    """
    remedy = "--skeleton takes the skeleton.json of a model directory or the pipeline.json of records"

    def parse(value: Any) -> Skeleton:
        return Skeleton.from_json(an_object(value).get("skeleton", value))

    return checked_json(file, "no keypoint set", parse, remedy=remedy)
