"""Draws a pose as a person: limbs, clothes, face and hair as filled polygons, from the farthest to the nearest.

From the front a person shows a face and an open collar with a bright stripe down the chest, from behind hair and a plain
back. The colours of the limbs tell left from right, see `looks.Look`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.synthetic.looks import Color, Look, luminance, shade
from pipeline.synthetic.poses import FACE_POINTS, KEYPOINTS, SIDES, Floats, Pose

# Parts of the body, as they are told apart in a label image.
PARTS = (
    "torso",
    "skirt",
    "head",
    "hair",
    "neck",
    *(f"{side}_{limb}" for side, _ in SIDES for limb in ("upper_arm", "forearm", "thigh", "shin", "foot")),
)
PART = {name: number for number, name in enumerate(PARTS)}


def _parts_that_show() -> dict[str, frozenset[int]]:
    shows: dict[str, Sequence[str]] = dict.fromkeys(FACE_POINTS, ("head",))
    for side, _ in SIDES:
        shows[f"{side}_shoulder"] = ("torso", "neck", f"{side}_upper_arm")
        shows[f"{side}_elbow"] = (f"{side}_upper_arm", f"{side}_forearm")
        shows[f"{side}_wrist"] = (f"{side}_forearm",)
        shows[f"{side}_hip"] = ("torso", "skirt", "left_thigh", "right_thigh")
        shows[f"{side}_knee"] = (f"{side}_thigh", f"{side}_shin", "skirt")  # clothes do not hide a joint
        shows[f"{side}_ankle"] = (f"{side}_shin", f"{side}_foot")
    return {name: frozenset(PART[part] for part in parts) for name, parts in shows.items()}


# Keypoint → the parts under which it counts as visible; under any other part it is hidden.
SHOWS: Mapping[str, frozenset[int]] = _parts_that_show()


@dataclasses.dataclass(frozen=True)
class Shape:
    """One polygon. `outline` is the same polygon a little larger: it is drawn first, darker, and is what covers others;
    None for a decoration, which lies inside the part below it. Both float64 [N,2], pixels from the middle of the hips.
    """

    part: int
    polygon: Floats
    outline: Floats | None
    color: Color


@dataclasses.dataclass(frozen=True)
class Figure:
    """A person ready to be drawn.

    Attributes:
      shapes: from the farthest to the nearest.
      keypoints: float64 [K,2], pixels from the middle of the hips, in the order of `KEYPOINTS`.
      facing: float64 [K]: cosine between the surface's normal at the point and the view (1 for the joints inside limbs).
      extent: x0, y0, x1, y1 of all outlines, pixels from the middle of the hips.
      scale: standing height in pixels.
      pose: what is drawn.
    """

    shapes: tuple[Shape, ...]
    keypoints: Floats
    facing: Floats
    extent: tuple[float, float, float, float]
    scale: float
    pose: Pose


_ARC = np.linspace(-math.pi / 2, math.pi / 2, 6)
_CIRCLE = np.linspace(0, 2 * math.pi, 18, endpoint=False)


def capsules(start: Floats, end: Floats, start_radius: Floats, end_radius: Floats) -> Floats:
    """Tapered rods with round ends: start, end [M,2]; radii [M] → polygons [M,12,2]."""
    along = end - start
    angle = np.arctan2(along[:, 1], along[:, 0])[:, None]  # [M,1]
    far, near = angle + _ARC, angle + math.pi + _ARC  # [M,6]
    tip = end[:, None] + end_radius[:, None, None] * np.stack([np.cos(far), np.sin(far)], -1)
    tail = start[:, None] + start_radius[:, None, None] * np.stack([np.cos(near), np.sin(near)], -1)
    return np.concatenate([tip, tail], axis=1)


def _hull_of_circles(centers: Floats, radii: Floats) -> Floats:
    """What a rubber band around circles [M,2], [M] encloses: a convex polygon [N,2]."""
    rim = centers[:, None] + radii[:, None, None] * np.stack([np.cos(_CIRCLE), np.sin(_CIRCLE)], -1)
    points = sorted(map(tuple, rim.reshape(-1, 2).tolist()))
    halves: list[list[tuple[float, ...]]] = []
    for order in (points, points[::-1]):
        chain: list[tuple[float, ...]] = []
        for x, y in order:
            while len(chain) > 1 and (chain[-1][0] - chain[-2][0]) * (y - chain[-2][1]) <= (chain[-1][1] - chain[-2][1]) * (
                x - chain[-2][0]
            ):
                chain.pop()
            chain.append((x, y))
        halves.append(chain[:-1])
    return np.array(halves[0] + halves[1])


@dataclasses.dataclass(frozen=True)
class _Rod:
    """A limb or a piece of clothing around it, in camera coordinates and units of the standing height."""

    part: int
    depth: float
    start: Floats
    end: Floats
    radii: tuple[float, float]
    color: Color


def _rods(pose: Pose, look: Look) -> list[_Rod]:
    p, girth = pose.points, pose.body.girth
    collar, chin = p["neck"], p["neck"] + (p["head"] - p["neck"]) * 0.6
    neck_depth = min(float(collar[2]) / 2 + 0.001, float(p["head"][2]) - 0.001)  # over the torso, under the head
    rods = [_Rod(PART["neck"], neck_depth, collar, chin, (0.034 * girth, 0.034), look.skin)]
    if look.long_hair:
        tip = p["head"] - pose.head[:, 1] * 0.15 - pose.head[:, 2] * 0.06
        start = p["head"] - pose.head[:, 2] * 0.02
        rods.append(
            _Rod(PART["hair"], float(tip[2]) - 0.02, start, tip, (pose.body.head[0] * 0.95, pose.body.head[0] * 0.8), look.hair)
        )
    for side, _ in SIDES:
        # Arms that hang beside the torso lie over its edge; thighs come out from under the shirt.
        limbs = (
            (("shoulder", "elbow", "wrist"), ("upper_arm", "forearm"), (0.039, 0.032, 0.024), look.arms[side], 0.02),
            (("hip", "knee", "ankle"), ("thigh", "shin"), (0.062, 0.046, 0.03), look.legs[side], -0.03),
        )
        for joints, (upper, lower), radii, colors, nearer in limbs:
            a, b, c = (p[f"{side}_{joint}"] for joint in joints)
            ra, rb, rc = (radius * girth for radius in radii)
            upper_depth, lower_depth = float(a[2] + b[2]) / 2 + nearer, float(b[2] + c[2]) / 2 + nearer + 0.005
            upper_part, lower_part = PART[f"{side}_{upper}"], PART[f"{side}_{lower}"]
            if lower == "forearm":
                rods.append(_Rod(lower_part, lower_depth - 0.001, c, p[f"{side}_hand"], (0.026, 0.028), look.skin))
            else:
                rods.append(
                    _Rod(
                        PART[f"{side}_foot"],
                        float(c[2] + p[f"{side}_toe"][2]) / 2 + nearer,
                        c,
                        p[f"{side}_toe"],
                        (0.033, 0.028),
                        look.shoes,
                    )
                )
            rods.append(_Rod(upper_part, upper_depth, a, b, (ra, rb), colors[0]))
            rods.append(_Rod(lower_part, lower_depth, b, c, (rb, rc), colors[1]))
    return rods


def _torso_strip(pose: Pose, low: float, high: float, low_half: float, high_half: float) -> Floats | None:
    """A strip down the middle of the chest, as far as it looks at the viewer.

    Args:
      low, high: where it ends, from 0 at the hips to 1 at the neck.
      low_half, high_half: half of its width at these ends, in radians around the torso, an elliptic cylinder.

    Returns: polygon [N,2] in units of the standing height, None if no part of it can be seen.
    """
    left, front = pose.torso[:, 0], pose.torso[:, 2]
    axis = pose.points["neck"]
    edges = []
    for at, half in ((low, low_half), (high, high_half)):
        across = (pose.body.hip + 0.03) * (1 - at) + pose.body.shoulder * at
        deep = 0.05 * pose.body.girth
        angles = np.linspace(-half, half, 9)[:, None]
        normal_z = np.sin(angles) * left[2] / across + np.cos(angles) * front[2] / deep  # [9,1]
        rim = axis * at + np.sin(angles) * across * left + np.cos(angles) * deep * front
        edges.append(rim[normal_z[:, 0] > 0, :2])
    if min(map(len, edges)) < 2:
        return None
    return np.concatenate([edges[0], edges[1][::-1]])


def _cross(a: Floats, b: Floats) -> Floats:
    """np.cross for two vectors [3], ten times as fast."""
    return np.array([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]])


class _Head:
    """The head as an ellipsoid: a patch on the unit sphere is bent around it, turned, and cut at its visible rim."""

    def __init__(self, pose: Pose) -> None:
        self._half_axes = np.asarray(pose.body.head)
        self._turn = pose.head
        self._center = pose.points["head"][:2]
        view = pose.head[2] / self._half_axes  # the rim is where the sphere's points are at right angles to this
        self.view = view / np.linalg.norm(view)

    def project(self, directions: Floats, grow: float = 0.0) -> Floats:
        """[N,3] on the unit sphere of the head's frame → [N,2] in the image."""
        return self._center + (directions * (self._half_axes + grow)) @ self._turn[:2].T

    def rim(self, grow: float) -> Floats:
        helper = np.array([0.0, 1.0, 0.0]) if abs(self.view[1]) < 0.9 else np.array([1.0, 0.0, 0.0])
        first = _cross(self.view, helper)
        first /= np.linalg.norm(first)
        second = _cross(self.view, first)
        return self.project(np.cos(_CIRCLE)[:, None] * first + np.sin(_CIRCLE)[:, None] * second, grow)

    def patch(self, center: Floats, across: float, up: float) -> Floats | None:
        """An oval of the given radii (radians) around a point of the sphere, polygon [18,2]; None if it looks away."""
        center = center / np.linalg.norm(center)
        right = np.array([center[2], 0.0, -center[0]])  # level, at right angles to the centre
        right /= np.linalg.norm(right)
        above = _cross(center, right)
        edge = math.cos(max(across, up)) * center + (
            math.sin(across) * np.cos(_CIRCLE)[:, None] * right + math.sin(up) * np.sin(_CIRCLE)[:, None] * above
        )
        edge /= np.linalg.norm(edge, axis=1, keepdims=True)
        towards = edge @ self.view  # [18]
        # An oval that goes round the back of the head would turn inside out on the rim; what shows of it is a sliver.
        if towards.max() < 0.02 or center @ self.view < -math.cos(max(across, up)):
            return None
        # What lies beyond the rim is drawn on the rim.
        edge -= np.minimum(towards, 0)[:, None] * self.view
        return self.project(edge / np.linalg.norm(edge, axis=1, keepdims=True))


def _head_shapes(pose: Pose, look: Look, outline: float) -> list[tuple[float, Shape]]:
    head, part = _Head(pose), PART["head"]
    depth = float(pose.points["head"][2])
    shapes: list[tuple[float, Shape]] = [(depth, Shape(part, head.rim(0.004), head.rim(0.004 + outline), look.hair))]
    step = 1e-4  # keeps the order below when shapes are sorted by depth

    def add(polygon: Floats | None, color: Color) -> None:
        if polygon is not None:
            shapes.append((depth + step * len(shapes), Shape(part, polygon, None, color)))

    def at(x: float, y: float, z: float) -> Floats:
        return np.array([x, y, z])

    add(head.patch(at(0, -0.32, 1), 1.12, 1.02), look.skin)
    dark = shade(look.skin, 0.62)
    for name in ("left_eye", "right_eye"):
        point = FACE_POINTS[name]
        add(head.patch(point, 0.27, 0.21), (245, 245, 245))
        add(head.patch(point, 0.14, 0.16), (25, 20, 20))
    add(head.patch(FACE_POINTS["nose"], 0.13, 0.2), dark)
    add(head.patch(at(0, -0.55, 0.84), 0.34, 0.09), (150, 40, 45) if luminance(look.skin) > 90 else (190, 80, 80))
    for name in ("left_ear", "right_ear"):
        point = FACE_POINTS[name]
        facing = float(point @ head.view)
        center = head.project(point[None])[0]
        size = np.array([0.0, 0.015, 0.015 + outline])
        rims = [center + s * np.stack([np.cos(_CIRCLE), np.sin(_CIRCLE) * 1.35], -1) for s in size]
        near = depth + 0.01 if facing > -0.05 else depth - 0.01
        if not (look.long_hair and pose.head[2, 2] < 0.15):
            shapes.append((near, Shape(part, rims[1], rims[2], shade(look.skin, 0.9))))
    return shapes


def draw_figure(pose: Pose, look: Look, scale: float) -> Figure:
    """Turns a pose into polygons.

    Args:
      pose: joints in units of the standing height.
      look: colours and clothes.
      scale: standing height in pixels.
    """
    outline = min(max(0.007 * scale, 0.5), 1.5) / scale
    p, girth = pose.points, pose.body.girth
    rods = _rods(pose, look)
    start, end = (np.array([getattr(rod, name)[:2] for rod in rods]) for name in ("start", "end"))
    radii = np.array([rod.radii for rod in rods])
    inner = capsules(start, end, radii[:, 0], radii[:, 1])
    outer = capsules(start, end, radii[:, 0] + outline, radii[:, 1] + outline)
    ordered = [
        (rod.depth, Shape(rod.part, inner[i], outer[i], shade(rod.color, 1 + min(max(1.1 * rod.depth, -0.3), 0.08))))
        for i, rod in enumerate(rods)
    ]

    # The torso lies behind its own middle, so that limbs beside it are drawn over it, and the far ones are not.
    depth = float(p["neck"][2]) / 2
    centers = np.array(
        [p["neck"] + (p[f"{side}_shoulder"] - p["neck"]) * 0.82 for side, _ in SIDES] + [p[f"{side}_hip"] for side, _ in SIDES]
    )[:, :2]
    sizes = np.array([0.05, 0.05, 0.062, 0.062]) * girth
    ordered.append(
        (depth, Shape(PART["torso"], _hull_of_circles(centers, sizes), _hull_of_circles(centers, sizes + outline), look.shirt))
    )
    if look.skirt is not None:
        hem = np.array([p[f"{side}_hip"] + (p[f"{side}_knee"] - p[f"{side}_hip"]) * 0.6 for side, _ in SIDES])
        around = np.concatenate([centers[2:], hem[:, :2]])
        sizes = np.array([0.06, 0.06, 0.075, 0.075]) * girth
        skirt = Shape(PART["skirt"], _hull_of_circles(around, sizes), _hull_of_circles(around, sizes + outline), look.skirt)
        ordered.append((max(depth - 1e-4, float(hem[:, 2].mean()) + 0.02), skirt))
    for step, (strip, color) in enumerate(
        ((_torso_strip(pose, -0.05, 0.93, 0.42, 0.42), look.front), (_torso_strip(pose, 0.7, 1.0, 0.02, 0.5), look.skin))
    ):
        if strip is not None:
            ordered.append((depth + 1e-4 * (step + 1), Shape(PART["torso"], strip, None, color)))
    ordered += _head_shapes(pose, look, outline)
    ordered.sort(key=lambda item: item[0])
    shapes = tuple(
        dataclasses.replace(
            shape, polygon=shape.polygon * scale, outline=None if shape.outline is None else shape.outline * scale
        )
        for _, shape in ordered
    )
    rims = np.concatenate([shape.outline for shape in shapes if shape.outline is not None])
    (x0, y0), (x1, y1) = rims.min(0).tolist(), rims.max(0).tolist()
    head = _Head(pose)
    facing = np.array([float(FACE_POINTS[name] @ head.view) if name in FACE_POINTS else 1.0 for name in KEYPOINTS])
    keypoints = np.array([p[name][:2] for name in KEYPOINTS]) * scale
    return Figure(shapes, keypoints, facing, (x0, y0, x1, y1), scale, pose)


def visible_from(facing: NDArray[np.float64]) -> NDArray[np.int64]:
    """COCO's visibility of points by their facing alone: 2 visible, 1 just round the corner, 0 turned away, not labelled.

    An ear stands out from the head, so it is seen from a little behind its middle.
    """
    ear = np.array([name.endswith("ear") for name in KEYPOINTS])
    seen = facing > np.where(ear, -0.3, 0.05)
    guessed = facing > np.where(ear, -0.6, -0.35)
    return np.where(seen, 2, np.where(guessed, 1, 0))
