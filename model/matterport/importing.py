"""From the old network's file of weights to a model directory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from model import model_dir as model_dir_lib
from model.matterport import layout
from model.matterport.config import MatterportConfig
from model.matterport.network import MaskRCNN
from model.matterport.weight_file import WeightFile, open_weights
from model.weights.importing import skeleton_for
from model.weights.names import told
from model.weights.pickle_reader import RefusedError
from model.weights.published import digests, note
from pipeline import config_overrides
from pipeline.command import UserError

SOURCE = "matterport"
NAMED = 3  # tensors that a message names one by one


def import_model(
    weights: str | Path,
    model_dir: str | Path,
    *,
    skeleton_file: str | Path | None = None,
    assignments: Sequence[str] = (),
    report: Callable[[str], None] = print,
) -> None:
    """Writes a model directory of the old network, with a checkpoint at step 0.

    Args:
      weights: an `.h5` file of weights, or of a whole model.
      model_dir: must not exist, or be empty.
      skeleton_file: the keypoint set (see `weights.importing.read_skeleton`), if it is not COCO's.
      assignments: as `config_overrides.override` takes them, for what the file does not tell: `inference.max_edge=512`.
      report: called with each line of what was found.

    Raises:
      UserError: a file that cannot be read or is of another network; a directory that is in use.
    """
    model_dir = Path(model_dir)
    model_dir_lib.check_new(model_dir)
    model, origin = imported(Path(weights), skeleton_file=skeleton_file, assignments=assignments, report=report)
    model_dir_lib.write_new(model_dir, model, dataclasses.asdict(model.config), model.skeleton, origin)


def imported(
    weights: Path,
    *,
    skeleton_file: str | Path | None = None,
    assignments: Sequence[str] = (),
    report: Callable[[str], None] = print,
) -> tuple[MaskRCNN, dict[str, Any]]:
    """The network of a file, and where its weights come from (see `published.note`). As `import_model`."""
    with open_weights(weights) as file:
        size = layout.architecture(file.shapes)
        expected = layout.shapes(size)
        _check_shapes(expected, file)
        config = config_overrides.override(MatterportConfig(architecture=size), assignments)
        if config.architecture != size:
            raise UserError("--set architecture.…: the file tells the network's sizes; leave it out")
        model = MaskRCNN(config, skeleton_for(size.keypoints, skeleton_file, report))
        for name, variable in model.variables_by_path().items():
            variable.assign(file.read(name))  # one at a time: a full-size file has 326 MB
        unused = [name for name in file.shapes if name not in expected]
    left_over = [*unused, *file.left_over]
    report(
        f"a ResNet with {list(size.blocks)} blocks, {size.stem} channels in its stem, {size.fpn} in its pyramid; "
        f"{size.keypoints} keypoints, {size.classes} classes"
    )
    report(f"{len(expected)} tensors of {weights.name} fill all {len(expected)} variables; {told(left_over)}")
    return model, note(SOURCE, weights, digests(weights), left_over)


def _check_shapes(expected: Mapping[str, layout.Shape], file: WeightFile) -> None:
    """Raises: RefusedError if a tensor is missing or of another shape."""
    missing = [name for name in expected if name not in file.shapes]
    if missing:
        raise RefusedError(
            f"lacks {len(missing)} of the network's {len(expected)} tensors ({_listed(missing)}): another network, or only a "
            "part of a file"
        )
    others = [f"{name} {file.shapes[name]}, not {shape}" for name, shape in expected.items() if file.shapes[name] != shape]
    if others:
        raise RefusedError(f"its tensors do not fit each other ({_listed(others)}): another network")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more}"
