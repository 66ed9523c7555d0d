"""Early stopping: training ends if the keypoint AP has not risen for a number of evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.command import counted


def reason_to_stop(evaluations: Sequence[tuple[int, Mapping[str, Any]]], patience: int, done: int) -> str | None:
    """A line that says why training stops after `done` steps; None if it goes on.

    Args:
      evaluations: step and figures of each evaluation so far, in order. An undefined `keypoint_ap`, None or below 0, does not
        count.
      patience: evaluations in a row that may pass without a higher keypoint AP than before.
      done: steps; only an evaluation after that step can be the reason.
    """
    judged = [(step, ap) for step, figures in evaluations if (ap := figures.get("keypoint_ap")) is not None and ap >= 0]
    if not judged or judged[-1][0] != done:
        return None
    best_step, best = max(judged, key=lambda evaluation: evaluation[1])  # the first of equals
    since = sum(step > best_step for step, _ in judged)
    if since < patience:
        return None
    return (
        f"stops early after step {done}: the keypoint AP has not exceeded the {best:.3f} of step {best_step} in the "
        f"{counted(since, 'evaluation')} since (--patience={patience})"
    )
