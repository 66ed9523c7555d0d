"""`model-card.md`: what an exported model is, for whoever gets it without the rest."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from export import client_notes
from export.compare import ALIKE, BOX_PIXELS, KEYPOINT_PIXELS
from export.examination import Conditions, Examined
from export.saved_model import versions
from model.config import AnyConfig, Config
from model.matterport.network import MaskRCNN
from model.network.keypoint_rcnn import PEOPLE_AT_ONCE, KeypointRCNN

TEMPLATE = Path(__file__).with_name("model_card.md")


def card(
    found: Sequence[Examined],
    conditions: Conditions,
    model: KeypointRCNN | MaskRCNN,
    weights: Mapping[str, Any],
    name: str,
) -> str:
    """The card, as Markdown; arguments as `report_page.pages` has them."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)  # Markdown is no HTML
    environment.filters["in_one_line"] = _in_one_line
    packages = versions(weights)["packages"]
    return environment.from_string(TEMPLATE.read_text()).render(
        found=found,
        conditions=conditions,
        own=conditions.model_ap,
        box_pixels=BOX_PIXELS,
        keypoint_pixels=KEYPOINT_PIXELS,
        alike=ALIKE,
        name=name,
        config=model.config,
        network=_network(model.config),
        skeleton=model.skeleton,
        has_parts=isinstance(model, KeypointRCNN),
        proposals=model.config.rpn.proposals_test if isinstance(model, KeypointRCNN) else None,
        people_at_once=PEOPLE_AT_ONCE,
        people=model.config.inference.max_detections,
        weights=dict(weights),
        started_from=json.dumps(weights.get("started_from"), indent=2),
        made_by=f"TensorFlow {packages['tensorflow']}",
        status=client_notes.STATUS,
        resize=client_notes.RESIZE[model.config.data.resize],
        scores=client_notes.scores_text(model.config),
        keypoint_scores=client_notes.keypoint_scores_text(),
    )


def _in_one_line(value: object) -> str:
    """Text of strangers within a line of Markdown: nothing in it begins a heading, a list, a table, HTML or a link."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(str(value).split()))


def _network(config: AnyConfig) -> str:
    if isinstance(config, Config):
        return f"Keypoint R-CNN ({config.preset}, ResNet of {'-'.join(map(str, config.backbone.blocks))} blocks with FPN)"
    return f"the old Keras Mask R-CNN (ResNet of {'-'.join(map(str, config.architecture.blocks))} blocks with FPN)"
