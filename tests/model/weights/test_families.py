"""Both families' full-size configurations make models, with the files' numbers of parameters."""

import dataclasses
import json
import math

import pytest

from model.config import from_json, to_json
from model.network.backbone import resnet
from model.network.keypoint_rcnn import KeypointRCNN
from model.weights.families import Architecture, detectron2, torchvision

FAMILIES = {"torchvision": torchvision, "detectron2": detectron2}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_full_size_model_of_each_family_can_be_made(name, skeleton):
    config = FAMILIES[name]()
    assert from_json(json.loads(json.dumps(to_json(config)))) == config
    variables = KeypointRCNN(config, skeleton).variables_by_path()
    # torchvision states 59,137,258 parameters for its file, frozen batch norms left out; 4,100 are deltas of the background.
    of_norms = ("/gamma", "/beta", "/mean", "/variance")
    weights = sum(math.prod(v.shape) for path, v in variables.items() if not path.endswith(of_norms))
    assert weights == 59_137_258 - 4 * 1025


def test_frozen_stages_are_those_next_to_the_pixels():
    architecture = Architecture(blocks=(1, 1, 1, 1), stem_width=4, width=4)
    config = dataclasses.replace(torchvision(architecture).backbone, frozen_stages=2)
    names = {v.path.split("/")[0] for v in resnet(config, None).trainable_variables}
    assert {name.split(".")[1] for name in names} == {"layer2", "layer3", "layer4"}
    thawed = resnet(dataclasses.replace(config, frozen_stages=0), None).trainable_variables
    assert {v.path.split(".")[1].split("/")[0] for v in thawed} == {"conv1", "layer1", "layer2", "layer3", "layer4"}
