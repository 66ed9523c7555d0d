"""Random poses of a jointed body in three dimensions: where the joints are, and which way chest and face look.

Left and right, near and far, and what hides what then follow from geometry instead of being drawn case by case.

Body frame: x to the person's own left, y up, z to the front, origin between the hips, unit = standing height.
Camera frame (all results): x to the right of the image, y down, z towards the viewer; orthographic.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Names, order and limbs of the person category in the official person_keypoints_*.json (limbs count from 1).
PERSON_CATEGORY: Mapping[str, Any] = {
    "supercategory": "person",
    "id": 1,
    "name": "person",
    "keypoints": [
        *("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder"),
        *("left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip"),
        *("left_knee", "right_knee", "left_ankle", "right_ankle"),
    ],
    "skeleton": [
        *([16, 14], [14, 12], [17, 15], [15, 13], [12, 13], [6, 12], [7, 13], [6, 7], [6, 8], [7, 9]),
        *([8, 10], [9, 11], [2, 3], [1, 2], [1, 3], [2, 4], [3, 5], [4, 6], [5, 7]),
    ],
}
KEYPOINTS: tuple[str, ...] = tuple(PERSON_CATEGORY["keypoints"])
SIDES = (("left", 1.0), ("right", -1.0))

# Points of the face on the unit sphere of the head's own frame. They lie on the surface, so their direction is also
# their normal: it tells whether they look at the viewer.
FACE_POINTS: Mapping[str, Floats] = {
    name: np.asarray(point) / np.linalg.norm(point)
    for name, point in {
        "nose": (0.0, -0.12, 1.0),
        "left_eye": (0.42, 0.16, 0.9),
        "right_eye": (-0.42, 0.16, 0.9),
        "left_ear": (1.0, 0.0, 0.0),
        "right_ear": (-1.0, 0.0, 0.0),
    }.items()
}


@dataclasses.dataclass(frozen=True)
class Proportions:
    """Lengths as fractions of the standing height. `girth` multiplies all thicknesses."""

    torso: float
    shoulder: float  # half of the distance between the shoulder joints
    hip: float
    upper_arm: float
    forearm: float
    thigh: float
    shin: float
    head: tuple[float, float, float]  # half axes: across, up, front
    girth: float


@dataclasses.dataclass(frozen=True)
class Pose:
    """A body in the camera frame, in units of the standing height.

    Attributes:
      body: its proportions.
      points: name → float64 [3]: the keypoints and neck, head (its centre), left_toe, left_hand, right_….
      torso: float64 [3,3]; columns are the chest's left, up and front in the camera frame.
      head: float64 [3,3]; the same for the head.
      kind: how the legs and the body are held, for tests and statistics.
    """

    body: Proportions
    points: Mapping[str, Floats]
    torso: Floats
    head: Floats
    kind: str


def random_proportions(rng: np.random.Generator) -> Proportions:
    child = rng.random() < 0.15
    head = 0.078 * rng.uniform(0.92, 1.1) * (1.25 if child else 1.0)
    leg = rng.uniform(0.92, 1.05) * (0.92 if child else 1.0)
    arm = rng.uniform(0.94, 1.08)
    girth = rng.uniform(0.85, 1.25)
    return Proportions(
        torso=0.285 * rng.uniform(0.95, 1.06),
        shoulder=0.118 * rng.uniform(0.9, 1.12) * (0.6 + 0.4 * girth),
        hip=0.07 * rng.uniform(0.92, 1.1) * (0.6 + 0.4 * girth),
        upper_arm=0.165 * arm,
        forearm=0.15 * arm,
        thigh=0.24 * leg,
        shin=0.235 * leg,
        head=(head * 0.86, head, head * 0.9),
        girth=girth,
    )


def random_pose(rng: np.random.Generator, *, calm: bool = False, yaw: float | None = None) -> Pose:
    """Draws a body, a pose and a viewpoint.

    Args:
      rng: source of all draws.
      calm: upright standing and walking only, for people far away.
      yaw: degrees about the vertical, 0 = facing the viewer, 90 = facing the right of the image; by default
        72 % near 0, 21 % from behind, 7 % between the front and a profile (more of these who sit, bend or run).
    """
    body = random_proportions(rng)
    kind = str(rng.choice(_CALM_KINDS if calm else _KINDS, p=None if calm else _KIND_SHARES))
    legs = _random_legs(rng, kind)
    forward, sideways = rng.normal(0, 5), rng.normal(0, 4)
    if kind == "bend":
        forward = rng.uniform(25, 70)
    elif kind == "lean":
        sideways = rng.choice([-1, 1]) * rng.uniform(12, 32)
    elif kind == "run":
        forward += 12
    if yaw is None:
        yaw = _random_yaw(rng, sideways_on=kind in ("bend", "sit", "run"))
    view = _look(yaw, pitch=rng.uniform(-4, 18), roll=_random_roll(rng, kind, calm))
    torso = _turn_y(rng.normal(0, 6)) @ _turn_x(forward) @ _turn_z(sideways)
    head = (
        torso
        @ _turn_y(float(np.clip(rng.normal(0, 16), -40, 40)))
        @ _turn_x(rng.normal(-forward * 0.4, 7))
        @ _turn_z(rng.normal(0, 6))
    )
    arms = [_random_arm(rng, calm) for _ in SIDES]
    if rng.random() < 0.25:  # both arms alike
        arms[1] = arms[0]
    points = _place(body, torso, head, arms, legs)
    return Pose(body, {name: view @ point for name, point in points.items()}, view @ torso, view @ head, kind)


_KIND_TABLE = {
    "stand": 0.30,
    "wide": 0.12,
    "walk": 0.22,
    "run": 0.06,
    "sit": 0.06,
    "squat": 0.03,
    "kick": 0.08,
    "bend": 0.03,
    "lean": 0.07,
    "lie": 0.03,
}
_KINDS = list(_KIND_TABLE)
_KIND_SHARES = [share / sum(_KIND_TABLE.values()) for share in _KIND_TABLE.values()]
_CALM_KINDS = ["stand", "walk", "wide"]

Leg = tuple[float, float, float]  # degrees: thigh forward, thigh outward, knee
Arm = tuple[float, float, float, tuple[float, float, float]]  # raised, swung to the front, elbow; where the forearm bends to


def _random_legs(rng: np.random.Generator, kind: str) -> list[Leg]:
    """Leg of the left, leg of the right."""
    u = rng.uniform
    still: Leg = (u(-5, 8), u(1, 9), u(0, 12))
    if kind == "wide":
        return [(u(-5, 10), u(14, 32), u(0, 20)) for _ in SIDES]
    if kind == "sit":
        return [(u(72, 95), u(4, 24), u(70, 105)) for _ in SIDES]
    if kind == "squat":
        return [(u(60, 105), u(14, 40), u(85, 130)) for _ in SIDES]
    if kind in ("walk", "run"):
        ahead: Leg = (u(14, 36), u(0, 6), u(2, 28)) if kind == "walk" else (u(35, 72), u(0, 8), u(45, 100))
        behind: Leg = (u(-32, -8), u(0, 6), u(8, 50)) if kind == "walk" else (u(-38, -5), u(0, 8), u(25, 95))
        legs = [ahead, behind]
    elif kind == "kick":
        raised = [(u(35, 100), u(0, 25), u(0, 95)), (u(-10, 10), u(28, 65), u(0, 60)), (u(-15, 15), u(0, 10), u(60, 115))]
        legs = [still, raised[rng.integers(3)]]
    elif kind == "lie":
        legs = [(u(-10, 60), u(0, 25), u(0, 90)) for _ in SIDES]
    else:
        legs = [still, (still[0] + u(-8, 8), u(1, 9), u(0, 15))]
    return legs if rng.random() < 0.5 else legs[::-1]


_ARM_SHARES = (0.16, 0.16, 0.10, 0.14, 0.12, 0.12, 0.05, 0.06, 0.04, 0.05)  # in the order of the cases below


def _random_arm(rng: np.random.Generator, calm: bool) -> Arm:
    u = rng.uniform
    match int(rng.integers(3)) if calm else int(rng.choice(len(_ARM_SHARES), p=_ARM_SHARES)):
        case 0:  # hanging
            return u(3, 20), u(-30, 60), u(0, 35), (-0.3, 0.3, 1.0)
        case 1:  # away from the body
            return u(22, 65), u(-25, 30), u(0, 60), (u(-1, 1), u(-0.2, 1), u(0, 1))
        case 2:  # hand at the hip
            return u(28, 50), u(-30, 10), u(75, 110), (-1.0, -0.2, 0.3)
        case 3:  # up
            return u(135, 178), u(-20, 50), u(0, 50), (-0.6, 0.4, 0.5)
        case 4:  # waving
            return u(70, 115), u(-15, 30), u(60, 125), (-0.1, 1.0, 0.2)
        case 5:  # out to the side
            return u(70, 115), u(-20, 20), u(0, 30), (0.0, 1.0, 0.5)
        case 6:  # reaching to the front
            return u(40, 100), u(45, 95), u(0, 80), (-0.4, 1.0, 0.0)
        case 7:  # carrying
            return u(8, 40), u(0, 60), u(60, 130), (-0.4, 0.7, 1.0)
        case 8:  # across the chest
            return u(15, 45), u(20, 70), u(80, 125), (-1.0, 0.4, 0.3)
        case _:  # hand to the head
            return u(95, 145), u(-20, 40), u(100, 140), (-1.0, 0.5, 0.1)


def _random_yaw(rng: np.random.Generator, sideways_on: bool) -> float:
    near = float(np.clip(rng.normal(0, 17), -34, 34))
    share = rng.random()
    if share < (0.50 if sideways_on else 0.72):
        return near
    if share < (0.70 if sideways_on else 0.93):
        return 180 + near * 1.3
    return float(rng.choice([-1, 1]) * rng.uniform(34, 74))


def _random_roll(rng: np.random.Generator, kind: str, calm: bool) -> float:
    side = rng.choice([-1, 1])
    if kind == "lie":
        return float(side * rng.uniform(65, 115))
    share = rng.random()
    if calm or share < 0.92:
        return float(rng.normal(0, 6))
    return float(side * (rng.uniform(14, 60) if share < 0.98 else rng.uniform(60, 180)))


def _turn_x(degrees: float) -> Floats:
    """Positive leans what points up towards the front."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def _turn_y(degrees: float) -> Floats:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def _turn_z(degrees: float) -> Floats:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def _look(yaw: float, pitch: float, roll: float) -> Floats:
    """Body frame → camera frame; the last step turns y up into y down."""
    return np.diag([1.0, -1.0, 1.0]) @ _turn_z(roll) @ _turn_x(pitch) @ _turn_y(yaw)


def _bend(direction: Floats, towards: Floats, degrees: float) -> Floats:
    """Turns the unit vector `direction` by an angle towards another vector."""
    across = towards - (towards @ direction) * direction
    across = across / max(float(np.linalg.norm(across)), 1e-6)
    return math.cos(math.radians(degrees)) * direction + math.sin(math.radians(degrees)) * across


def _place(body: Proportions, torso: Floats, head: Floats, arms: list[Arm], legs: list[Leg]) -> dict[str, Floats]:
    """The joints in the body frame, from the angles of each limb."""
    neck = torso[:, 1] * body.torso
    points = {"neck": neck, "head": neck + torso[:, 1] * 0.035 + head[:, 1] * body.head[1]}
    for name, direction in FACE_POINTS.items():
        points[name] = points["head"] + head @ (direction * body.head)
    for (side, sign), (raised, swung, elbow, towards), (ahead, outward, knee) in zip(SIDES, arms, legs, strict=True):
        outside = np.array([sign, 1.0, 1.0])  # mirrors a vector that is written for the left
        raised, swung = math.radians(raised), math.radians(swung)
        upper = np.array([math.sin(raised) * math.cos(swung), -math.cos(raised), math.sin(raised) * math.sin(swung)])
        lower = _bend(upper, np.asarray(towards), elbow)
        shoulder = neck + torso @ np.array([sign * body.shoulder, -0.03, 0.0])
        points[f"{side}_shoulder"] = shoulder
        points[f"{side}_elbow"] = shoulder + torso @ (upper * outside) * body.upper_arm
        points[f"{side}_wrist"] = points[f"{side}_elbow"] + torso @ (lower * outside) * body.forearm
        points[f"{side}_hand"] = points[f"{side}_wrist"] + torso @ (lower * outside) * 0.03
        # A thigh leaves a hip that does not turn with the chest; a knee bends to the back, a foot points to the front.
        a, o = math.radians(ahead), math.radians(outward)
        thigh = np.array([math.sin(o), -math.cos(a) * math.cos(o), math.sin(a) * math.cos(o)])
        shin = _bend(thigh, np.array([0.0, -0.2, -1.0]), knee)
        foot = _bend(shin, np.array([0.35, shin[2], -shin[1]]), 72)  # in front of the shin, toes turned out
        points[f"{side}_hip"] = np.array([sign * body.hip, 0.0, 0.0])
        points[f"{side}_knee"] = points[f"{side}_hip"] + thigh * outside * body.thigh
        points[f"{side}_ankle"] = points[f"{side}_knee"] + shin * outside * body.shin
        points[f"{side}_toe"] = points[f"{side}_ankle"] + foot * outside * 0.085
    return points
