"""What training starts from instead of random weights: a backbone's file (a ResNet of ImageNet), or a whole model directory."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from model import config as config_lib
from model.checkpoint_names import Which, is_in_model_dir, model_dir_of
from model.config import BackboneConfig, Config
from model.matterport.network import MaskRCNN
from model.matterport.starting_point import OldNetwork
from model.model_dir import load_any, load_note
from model.network.keypoint_rcnn import KeypointRCNN
from model.weights import layout, names
from model.weights.families import RESNEXT_PIXEL_STD
from model.weights.names import CAFFE2, DETECTRON2, KERAS, TORCHVISION, Family, Tensors, told
from model.weights.pickle_reader import RefusedError
from model.weights.published import digests, note
from model.weights.weight_files import read_weights
from pipeline import config_overrides
from pipeline.command import UserError

# How each family's classification networks see images, and where their strides lie. Detectron2's own names are those of its
# conversion of torchvision's networks; what it calls MSRA's, and Keras' networks, descend from the authors' Caffe models.
_MSRA = BackboneConfig(
    stride_in_1x1=True, pixel_order="BGR", pixel_range=255.0, pixel_mean=(103.53, 116.28, 123.675), pixel_std=(1.0, 1.0, 1.0)
)
_CONVENTIONS: Mapping[str, BackboneConfig] = {
    TORCHVISION.name: BackboneConfig(),
    DETECTRON2.name: BackboneConfig(),
    CAFFE2.name: _MSRA,
    # keras.applications.imagenet_utils.preprocess_input, mode "caffe"; backbone.py has the epsilon.
    KERAS.name: dataclasses.replace(_MSRA, pixel_mean=(103.939, 116.779, 123.68), norm_epsilon=1.001e-5),
}
# The stem and the first stage stay as they are, in both reference implementations (FREEZE_AT 2, trainable_backbone_layers 3).
FROZEN_STAGES = 2


@dataclasses.dataclass(frozen=True)
class BackboneFile:
    """The ResNet of a file. `tensors` by path, as the file lays them out; `source` is for the model directory's note."""

    path: Path
    family: Family
    tensors: Tensors
    names: Mapping[str, str]
    source: Mapping[str, Any]

    def adapt(self, config: Config) -> Config:
        """The configuration with this backbone's colours, norms and strides, its first stages frozen.

        Raises:
          UserError: the configuration's backbone is of another size.
        """
        try:
            size = layout.backbone_architecture(self.tensors, channels_last=self.family.channels_last)
        except RefusedError as error:
            raise UserError(f"--init={self.path}: {error}") from None
        backbone = config.backbone
        asked = (backbone.blocks, backbone.stem_width or backbone.width, backbone.width, backbone.expansion, backbone.groups)
        if asked != (size.blocks, size.stem_width, size.width, size.expansion, size.groups):
            raise UserError(
                f"--init={self.path}: {_size(size.blocks, size.width, size.groups)}; --preset={config.preset} has "
                f"{backbone.blocks}, {backbone.width} wide{_in_groups(backbone.groups)}: give another --preset, or --set "
                "backbone.blocks and backbone.width"
            )
        family = _CONVENTIONS[self.family.name]
        if self.family is CAFFE2 and size.groups > 1:  # not MSRA's, but FAIR's own X-101-32x8d.pkl
            family = dataclasses.replace(family, stride_in_1x1=False, pixel_std=RESNEXT_PIXEL_STD)
        taken = ("norm", "norm_epsilon", "stride_in_1x1", "pixel_order", "pixel_range", "pixel_mean", "pixel_std")
        changes = {name: getattr(family, name) for name in taken}
        return dataclasses.replace(config, backbone=dataclasses.replace(backbone, **changes, frozen_stages=FROZEN_STAGES))

    def fill(self, model: KeypointRCNN) -> str:
        """Gives the model's backbone its values. Returns what was done. Raises: UserError if they do not fit."""
        variables = {path: v for path, v in model.variables_by_path().items() if path.startswith("backbone.")}
        shapes = {path: tuple(variable.shape) for path, variable in variables.items()}
        try:
            whole = layout.complete(self.tensors, self.family, model.config.backbone.norm_epsilon)
            values = layout.values(whole, self.family, shapes, self.names)
        except RefusedError as error:
            raise UserError(f"--init={self.path}: {error}") from None
        for path, value in values.items():
            variables[path].assign(value)
        return f"the backbone starts from {self.path.name}, all else from random weights; {told(self.source['left_over'])}"


@dataclasses.dataclass(frozen=True)
class ModelDirectory:
    """A whole model: of `model.import_weights`, or of an earlier training."""

    path: Path
    model: KeypointRCNN
    source: Mapping[str, Any]

    def adapt(self, config: Config) -> Config:
        """The directory's own configuration, whatever `config` is."""
        return self.model.config

    def fill(self, model: KeypointRCNN) -> str:
        """Gives the model all values but the heatmaps' if the keypoints are others, and the box head's last if the classes are.

        As `BackboneFile.fill`.
        """
        values: dict[str, NDArray[Any]] = {path: v.numpy() for path, v in self.model.variables_by_path().items()}
        anew: list[str] = []
        others: list[str] = []
        if model.skeleton.keypoints != self.model.skeleton.keypoints:  # limbs, twins and sigmas are not in the weights
            others.append("keypoints")
            anew += [path for path in values if path.startswith("keypoint.deconv/")]
        own_classes, classes = ([name for _, name in one.skeleton.classes] for one in (self.model, model))
        if own_classes != classes:
            others.append("classes")
            anew += [path for path in values if path.startswith(("box.class/", "box.deltas/"))]
        variables = model.variables_by_path()
        for path, variable in variables.items():
            if path in anew:
                continue
            if path not in values or values[path].shape != tuple(variable.shape):
                has = values[path].shape if path in values else "nothing"
                raise UserError(
                    f"--init={self.path}: has {has} for {path} {tuple(variable.shape)}; leave its sizes as they are"
                )
            variable.assign(values[path])
        other = f"; {', '.join(anew)} from random weights, for its {' and '.join(others)} are others" if anew else ""
        return f"starts from {self.path}{other}"


def _size(blocks: tuple[int, ...], width: int, groups: int) -> str:
    return f"a {'ResNeXt' if groups > 1 else 'ResNet'} with {blocks} blocks, {width} wide{_in_groups(groups)}"


def _in_groups(groups: int) -> str:
    return f" in {groups} groups" if groups > 1 else ""


StartingPoint = BackboneFile | ModelDirectory | OldNetwork


def configuration(
    model_dir: Path,
    start: StartingPoint | None,
    preset: str | None,
    assignments: Sequence[str],
    given: Config | None = None,
) -> Config:
    """The configuration of a training into `model_dir`.

    Args:
      model_dir: its configuration is the one to go on with, unless training starts from somebody's weights: then those decide,
        even if a run that ended before its first checkpoint has left a configuration.
      start: None if there is a checkpoint already.
      preset: by name; by default the one of `model_dir`, or r50_fpn.
      given: instead of a preset.
      assignments: as `config_overrides.override` takes them; they have the last word.

    Raises:
      UserError: no such preset or field; a backbone of another size than the preset's.
    """
    config = given or config_lib.preset(preset or "r50_fpn")
    if start is not None:
        config = start.adapt(config_overrides.override(config, assignments))
    elif given is None and (model_dir / "config.json").exists():
        previous = config_lib.load(model_dir / "config.json")
        config = previous if preset in (None, previous.preset) else config
    return config_overrides.override(config, assignments)


def open_starting_point(path: str | Path, which: Which = "newest") -> StartingPoint:
    """Reads what `--init` names.

    Args:
      which: the checkpoint of a model directory.

    Raises:
      UserError: neither a model directory nor a file of a ResNet.
    """
    path = Path(path)
    if path.is_dir() or is_in_model_dir(path):
        own = model_dir_of(path)
        model, source = load_any(path, which, "--init"), load_note(own) or {"model_dir": own.resolve().name}
        return OldNetwork(path, model, source) if isinstance(model, MaskRCNN) else ModelDirectory(path, model, source)
    if which == "best":
        raise UserError(f"--which=best: --init={path} is a file of weights; leave the flag out")
    tensors = read_weights(path)
    try:
        family = names.recognise(tensors)
        by_path, source_names, left_over = names.renamed(tensors, family)
        if any(not name.startswith("backbone.") for name in by_path):
            raise RefusedError("a whole detector: python -m model.import_weights makes a model directory of it, for --init=DIR")
        # This ResNet has no biases: Keras' go into the norms' means, and Caffe2's is left out as Detectron2 leaves it out.
        left_over += [source_names[key] for key in layout.complete(by_path, family, 0.0) if key.endswith("/bias")]
    except RefusedError as error:
        raise UserError(f"--init={path}: {error}") from None
    return BackboneFile(path, family, by_path, source_names, note(family.name, path, digests(path), left_over))
