"""`export-report.html` and `export-report.json`: what each artifact of an export is worth, as it was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from export import client_notes
from export.compare import ALIKE, BOX_PIXELS, KEYPOINT_PIXELS, SURE, Answer, compare
from export.examination import ROUNDS, Ap, Conditions, Examined, Questions, threads
from export.formats import FORMATS
from export.saved_model import versions
from export.tflite import sizes
from model.inference.predictor import people_of
from model.matterport.network import MaskRCNN
from model.network.keypoint_rcnn import PEOPLE_AT_ONCE, KeypointRCNN
from pipeline.image_writer import encode
from pipeline.inspection import html_page
from pipeline.skeleton import Skeleton

JPEG_QUALITY = 85

TEMPLATE = Path(__file__).with_name("report.html")


def pages(
    found: Sequence[Examined],
    missing: Mapping[str, str],
    refused: Mapping[str, str],
    asked: Questions,
    conditions: Conditions,
    model: KeypointRCNN | MaskRCNN,
    weights: Mapping[str, Any],
    name: str,
) -> dict[str, str]:
    """The report by its ending, "html" and "json".

    Args:
      found: the artifacts and their figures.
      missing: formats that could not be made, and why.
      refused: formats whose artifact was made and gets no name, and by which number.
      asked: the images of the comparison.
      conditions: what the figures were measured on.
      model, weights, name: what was exported.
    """
    height, width, _ = asked.images[0].shape
    about: dict[str, Any] = {
        "name": name,
        "weights": dict(weights),
        "versions": versions(weights),
        "images": asked.fixed,
        "images_from": conditions.images,
        "int8_ranges_from": conditions.ranges,
        "height": height,
        "width": width,
        "threads": threads(),
        "split": conditions.split[0] if conditions.split is not None else None,
        "split_images": conditions.split[1] if conditions.split is not None else None,
        "model_ap": _ap(conditions.model_ap),
        "bars_in_pixels": {"box": BOX_PIXELS, "keypoint": KEYPOINT_PIXELS},
        "artifacts": [_about(one, conditions.model_ap, width, height, model.skeleton) for one in found],
        "not_made": _reasons(missing),
        "refused": _reasons(refused),
    }
    page = html_page.render(
        TEMPLATE,
        about=about,
        drawings=[_drawing(one, asked, model.skeleton) for one in found],
        box_pixels=BOX_PIXELS,
        keypoint_pixels=KEYPOINT_PIXELS,
        alike=ALIKE,
        sure=SURE,
        rounds=ROUNDS,
        score=client_notes.SCORE,
        scores=client_notes.scores_text(model.config),
        keypoint_scores=client_notes.keypoint_scores_text(),
    )
    return {"html": page, "json": json.dumps(about, indent=2) + "\n"}


def _reasons(formats: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"format": kind, "title": FORMATS[kind].title, "reason": why} for kind, why in formats.items()]


def _about(one: Examined, model_ap: Ap | None, width: int, height: int, skeleton: Skeleton) -> dict[str, Any]:
    artifact = one.artifact
    one_size = f"uint8 [1, {height}, {width}, 3]"
    signatures = {
        "saved_model": "serving_default, serving_tolerant: JPEG or PNG files; serve_images: uint8 [N, height, width, 3]; "
        f"serve_one_image{'' if skeleton.classes else ', raw'}: uint8 [1, height, width, 3]",
        "tflite": f"serve_images: {one_size}",
        "tflite_parts": f"find_people: {one_size}; find_keypoints: float32 [{PEOPLE_AT_ONCE}, 4], p2…p5 of find_people",
        "tflite_sizes": "; ".join(f"{name}: uint8 [1, {h}, {w}, 3]" for name, (h, w) in sizes(height, width).items()),
        "onnx": "uint8 [1, height, width, 3]",
    }
    return {
        "format": artifact.name,
        "title": artifact.format.title,
        "path": artifact.shown,
        "signature": signatures[artifact.format.runtime],
        "bytes": artifact.bytes(),
        "sha256": artifact.sha256(),
        "milliseconds": one.milliseconds,
        "ap": _ap(one.ap),
        "ap_less_the_models": _difference(one.ap, model_ap),
        **one.comparison.as_json(),
    }


def _ap(ap: Ap | None) -> dict[str, float] | None:
    return {"keypoints": ap.keypoints, "boxes": ap.boxes} if ap is not None else None


def _difference(ap: Ap | None, model_ap: Ap | None) -> dict[str, float] | None:
    if ap is None or model_ap is None:
        return None
    return {"keypoints": ap.keypoints - model_ap.keypoints, "boxes": ap.boxes - model_ap.boxes}


def _drawing(one: Examined, asked: Questions, skeleton: Skeleton) -> dict[str, Any]:
    number = one.comparison.worst
    expected, answer = asked.expected[number], one.answers[number]
    here = compare([expected], [answer], skeleton.sigmas)
    return {
        "title": one.artifact.format.title,
        "number": number + 1,
        "equal": here.equal.matched,
        "detections": here.equal.total,
        "box_pixels": here.box_pixels[0],
        "keypoint_pixels": here.keypoint_pixels[0],
        "model": _drawn(asked, number, expected, skeleton),
        "artifact": _drawn(asked, number, answer, skeleton),
    }


def _drawn(asked: Questions, number: int, answer: Answer, skeleton: Skeleton) -> str:
    """An image with the people of an answer, as a data URI."""
    drawn = people_of(answer, 0, skeleton).at_least(client_notes.SCORE).draw(asked.images[number])
    return html_page.jpeg_source(encode(drawn, "jpeg", quality=JPEG_QUALITY))
