"""How a training runs, as opposed to what it trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from model.checkpoint_files import OnDamaged
from model.network.keypoint_rcnn import KeypointRCNN
from model.training.arguments import LOG_EVERY
from model.training.metrics_log import MetricsLog
from model.training.saver import KEPT_CHECKPOINTS
from pipeline.loading.options import PLAIN, LoadingOptions

OnNonfinite = Literal["stop", "skip"]  # what happens at a loss that is not finite
# Takes the model, the log (None on workers other than the first), the step, and a function to call now and then, which raises
# if the training shall stop.
Validate = Callable[[KeypointRCNN, MetricsLog | None, int, Callable[[], None]], None]


@dataclasses.dataclass(frozen=True)
class Run:
    """How a training runs, as opposed to what it trains (`Config`)."""

    model_dir: Path
    precision: str = "float32"
    jit_compile: bool = False
    steps_per_call: int = 1  # steps in one call of a tf.function, where nothing is to be done between them
    save_every: int = 1000  # steps
    evaluate_every: int = 0  # steps; 0: not while training
    log_every: int = LOG_EVERY  # steps between two lines of metrics.jsonl
    patience: int = 0  # evaluations without a higher keypoint AP, after which training stops; 0: it does not
    options: LoadingOptions = PLAIN
    keep: int = KEPT_CHECKPOINTS  # the newest
    keep_every: int = 0  # steps; 0: none is kept for good
    on_nonfinite: OnNonfinite = "stop"
    on_damaged_checkpoint: OnDamaged = "previous"
    peak_tflops: float | None = None  # of one device; None: by the table of `arithmetic.py`
    profile: tuple[int, int] | None = None  # steps, the second is the first that is not profiled
    dry_run: bool = False  # says what would be done, and writes nothing
    recipe: Mapping[str, Any] | None = None  # written to recipe.json
    remarks: tuple[str, ...] = ()  # printed after the first line, which says what trains
