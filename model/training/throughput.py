"""How fast a training is: arithmetic per second beside the devices' peak, their memory, and steps that are traced late."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from model.training import arithmetic
from model.training.step import Learner
from model.training.strategies import num_workers
from pipeline.command import say


class Throughput:
    """Watches the steps of a training.

    Args:
      learner: whose steps.
      precision: the Keras policy of its layers.
      peak_tflops: of one device; None: by `arithmetic.PEAKS`.
      settled_after: number of steps after which every canvas has been traced: those of an epoch.
    """

    def __init__(self, learner: Learner, precision: str, peak_tflops: float | None, settled_after: int) -> None:
        self._learner, self._settled_after = learner, settled_after
        devices = [tf.DeviceSpec.from_string(name) for name in learner.strategy.extended.worker_devices]
        self._gpus = [device.device_index for device in devices if device.device_type == "GPU"]
        peaks = {arithmetic.peak_tflops(_gpu_name(index), precision) for index in self._gpus}
        own = next(iter(peaks)) if len(peaks) == 1 else None  # of one kind of GPU
        one = peak_tflops if peak_tflops is not None else own
        # TFLOP/s of all devices of all workers together; None if a device is not known.
        self.peak = None if one is None else one * learner.strategy.num_replicas_in_sync
        self._products: dict[tuple[int | None, ...], float | None] = {}
        self._traces, self._steps = (0, 0), 0

    def products(self, arguments: tuple[Any, ...]) -> float | None:
        """The floating-point operations of a step that has just been started, over all workers; None if they are not known.

        Args:
          arguments: of `Learner.take_step`. What is counted once for a canvas holds for all its batches.
        """
        canvas = self._canvas(arguments[0])
        if canvas not in self._products:
            parts = self._learner.config.train.accumulate
            here = arithmetic.products(self._learner.take_step, arguments, iterations=parts)
            self._products[canvas] = None if here is None else here * num_workers(self._learner.strategy)
        return self._products[canvas]

    def share_a_canvas(self, batches: Sequence[dict[str, Any]]) -> bool:
        """Whether the batches have the same shapes, so that one trace takes them all."""
        return len({(self._canvas(batch), self._shape(batch["image"])) for batch in batches}) == 1

    def _canvas(self, batch: dict[str, Any]) -> tuple[int | None, ...]:
        return self._shape(batch["canvas" if "canvas" in batch else "image"])  # (the step makes images of originals on it)

    def _shape(self, value: Any) -> tuple[int | None, ...]:
        return tuple(self._learner.strategy.experimental_local_results(value)[0].shape)

    def watch_traces(self, step: int, steps: int) -> bool:
        """Whether the call that took the `steps` from `step` on was traced, and perhaps compiled, first.

        Warns if every canvas has had its turn before.
        """
        single = self._learner.take_step.experimental_get_tracing_count()
        several = self._learner.take_steps.experimental_get_tracing_count()
        if single > self._traces[0] and self._steps >= self._settled_after:
            say(
                f"train: step {step} was traced again, after an epoch of this run, which takes as long as the first step; if "
                "that happens again and again, it is a fault: report it with this run's config.json and canvases.json"
            )
        traced = (single, several) != self._traces
        self._traces, self._steps = (single, several), self._steps + steps
        return bool(traced)

    def device_memory(self) -> dict[str, float]:
        """The largest share of memory that a step took on a GPU since the call before, in GB; nothing on a CPU."""
        peaks = []
        for index in self._gpus:
            peaks.append(tf.config.experimental.get_memory_info(f"GPU:{index}")["peak"])
            tf.config.experimental.reset_memory_stats(f"GPU:{index}")
        return {"device_memory_gb": max(peaks) / 1e9} if peaks else {}


def _gpu_name(index: int) -> str:
    details = tf.config.experimental.get_device_details(tf.config.list_physical_devices("GPU")[index])
    return str(details.get("device_name", ""))
