"""The strategies of tf.distribute that training runs under, and how their replicas share batches."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from model.evaluation.share import Share
from model.training.cluster import answers, own_cluster, wait_for_peers
from pipeline.command import UserError, reason_of


def make_strategy(name: str, *, cpu_devices: int = 1) -> tf.distribute.Strategy:
    """Makes a strategy; must be called before TensorFlow has looked for devices.

    Args:
      name: "one_device" (the first GPU, or the CPU), "mirrored" (all GPUs, or all CPU devices), "multi_worker" (by TF_CONFIG),
        "tpu" (by TPU_NAME; that of this machine if it is not set).
      cpu_devices: logical devices to split the CPU into.

    Raises:
      UserError: an unknown name, a TF_CONFIG that is none, or no TPU; a signal while this worker waits for others.
    """
    _split_cpu(cpu_devices)
    if name == "multi_worker":
        cluster = own_cluster()
        if cluster.is_evaluator:
            raise UserError("TF_CONFIG: this task is the evaluator of a training; it is none of the workers")
        wait_for_peers(cluster)
        os.environ["TF_CONFIG"] = cluster.to_json()  # where TensorFlow reads it
        has_gpu = bool(tf.config.list_physical_devices("GPU"))
        kind = tf.distribute.experimental.CommunicationImplementation
        options = tf.distribute.experimental.CommunicationOptions(implementation=kind.NCCL if has_gpu else kind.RING)
        return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    if name == "one_device":
        return tf.distribute.OneDeviceStrategy(_devices()[0])
    if name == "mirrored":
        return tf.distribute.MirroredStrategy(_devices())
    if name == "tpu":
        return _tpu_strategy(os.environ.get("TPU_NAME", ""))
    raise UserError(f"--strategy={name}: must be one_device, mirrored, multi_worker or tpu")


def _tpu_strategy(name: str) -> tf.distribute.Strategy:
    """The strategy of a TPU, which is set up here.

    Args:
      name: as TensorFlow's resolver takes it, a TPU's in Google's cloud or an address grpc://host:port; empty: this machine's.

    Raises:
      UserError: there is no such TPU.
    """
    if not name and not tf.config.list_physical_devices("TPU"):
        raise UserError(
            "--strategy=tpu: this machine has no TPU that TensorFlow finds, and TPU_NAME is not set; set it to the name of a "
            "TPU, install tensorflow-tpu on a machine with one, or give --strategy=one_device or mirrored"
        )
    address = re.fullmatch(r"grpc://(.+:\d{1,5})", name)
    if address and not answers(address[1]):  # TensorFlow would wait for it without a word, and hear no signal
        raise UserError(f"--strategy=tpu: TPU_NAME={name}: nothing listens there; start the TPU, or correct its address")
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect(tpu=name or "local")
    except (ValueError, RuntimeError, OSError, tf.errors.OpError) as error:
        raise UserError(f"--strategy=tpu: TPU_NAME={name}: no TPU answers ({reason_of(error)})") from None
    return tf.distribute.TPUStrategy(resolver)


def evaluating_devices(name: str, *, cpu_devices: int = 1) -> tuple[list[str], tf.distribute.Strategy | None]:
    """The devices of this machine that share the images of an evaluation, and the strategy that joins several workers.

    Args:
      name, cpu_devices: as for `make_strategy`, and as early; "one_device", "mirrored" or "multi_worker".

    Returns:
      the devices; none: TensorFlow chooses one. And the strategy; None if there is one worker.

    Raises:
      UserError: another name, or what `make_strategy` raises.
    """
    if name == "multi_worker":
        strategy = make_strategy(name, cpu_devices=cpu_devices)
        return list(strategy.extended.worker_devices), strategy
    if name not in ("one_device", "mirrored"):
        raise UserError(f"--strategy={name}: an evaluation runs under one_device, mirrored or multi_worker")
    _split_cpu(cpu_devices)
    return _devices() if name == "mirrored" else [], None


def _split_cpu(devices: int) -> None:
    if devices > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * devices)


def _devices() -> list[str]:
    """The GPUs of this machine; if it has none, the devices of the CPU."""
    gpus = [device.name for device in tf.config.list_logical_devices("GPU")]
    return gpus or [device.name for device in tf.config.list_logical_devices("CPU")]


def describe(strategy: tf.distribute.Strategy, precision: str, global_batch_size: int) -> str:
    """What trains, for the first line of the log: replicas, devices, workers, precision and batch per replica."""
    replicas, workers = strategy.num_replicas_in_sync, num_workers(strategy)
    devices = [device_name(device) for device in strategy.extended.worker_devices]
    here = f"{', '.join(devices)} on each of {workers} workers" if workers > 1 else ", ".join(devices)
    return (
        f"{replicas} replica{'s' if replicas > 1 else ''} ({here}), {workers} worker{'s' if workers > 1 else ''}, {precision}, "
        f"{global_batch_size // replicas} image{'s' if global_batch_size > replicas else ''} per replica"
    )


def device_name(device: str) -> str:
    """A short name of one of TensorFlow's devices, with the product's if it is a GPU: "GPU:0 (NVIDIA H200)"."""
    parts = tf.DeviceSpec.from_string(device)
    short = f"{parts.device_type}:{parts.device_index}"
    if parts.device_type != "GPU":
        return short
    details = tf.config.experimental.get_device_details(tf.config.list_physical_devices("GPU")[parts.device_index])
    return f"{short} ({details['device_name']})" if "device_name" in details else short


def advice_on_missing_gpu(strategy: tf.distribute.Strategy, precision: str) -> str | None:
    """One line if no GPU was found and the run is asked for what only GPUs give; None otherwise."""
    if tf.config.list_physical_devices("GPU"):
        return None
    asked = ["--strategy=mirrored"] if type(strategy) is tf.distribute.MirroredStrategy else []
    if strategy.num_replicas_in_sync > 1:  # the CPU was split on purpose
        asked = []
    if precision != "float32":
        asked.append(f"--precision={precision}")
    if not asked:
        return None
    return (
        f"no GPU was found ({_why_no_gpu()}); training runs on the CPU, where nothing becomes faster with {' and '.join(asked)}"
    )


def _why_no_gpu() -> str:
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not tf.test.is_built_with_cuda():
        return "this TensorFlow is built without CUDA; pip install 'tensorflow[and-cuda]'"
    if hidden is not None and hidden.strip() in ("", "-1"):
        return f"CUDA_VISIBLE_DEVICES={hidden} hides them"
    if not Path("/dev/nvidiactl").exists():
        return "/dev/nvidiactl is missing: no driver of NVIDIA, or a container that was started without --gpus=all"
    return "a library of CUDA cannot be loaded, which TF_CPP_MIN_LOG_LEVEL=0 names; pip install 'tensorflow[and-cuda]'"


def num_workers(strategy: tf.distribute.Strategy) -> int:
    """Processes that train together."""
    resolver = strategy.cluster_resolver
    cluster = resolver.cluster_spec().as_dict() if resolver is not None else {}
    return max(1, sum(len(cluster.get(job, ())) for job in ("chief", "worker")))


def worker_index(strategy: tf.distribute.Strategy) -> int:
    """The number of this process among those that train together; 0 logs, saves and evaluates."""
    if num_workers(strategy) == 1:
        return 0
    resolver = strategy.cluster_resolver
    chiefs = len(resolver.cluster_spec().as_dict().get("chief", ()))
    return int(resolver.task_id) + (chiefs if resolver.task_type == "worker" else 0)


def share_of(strategy: tf.distribute.Strategy) -> Share | None:
    """The part of this process in the evaluations of a training under a strategy; None if no other takes part."""
    workers = num_workers(strategy)
    if workers == 1:
        return None
    replicas = strategy.num_replicas_in_sync // workers

    def gathered(content: np.ndarray) -> np.ndarray:
        """What the first replicas of the workers hold, int32 [N] each, one after the other."""

        def of_replica(context: tf.distribute.ValueContext) -> tf.Tensor:
            return tf.constant(content if context.replica_id_in_sync_group % replicas == 0 else content[:0], tf.int32)

        values = strategy.experimental_distribute_values_from_function(of_replica)
        return strategy.gather(values, axis=0).numpy()  # type: ignore[no-any-return]

    def exchange(value: Any) -> list[Any]:
        content = np.frombuffer(json.dumps(value).encode(), np.uint8)  # collectives take no bytes
        lengths = gathered(np.array([len(content)]))
        together = gathered(content).astype(np.uint8)
        return [json.loads(part.tobytes()) for part in np.split(together, np.cumsum(lengths)[:-1])]

    return Share(worker_index(strategy), workers, exchange)


@contextlib.contextmanager
def naming_lost_workers(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Says in one line what TensorFlow says in a page: that another worker has ended.

    Raises:
      UserError: another worker has ended, or cannot be reached.
    """
    try:
        yield
    except tf.errors.UnavailableError:
        if num_workers(strategy) == 1:
            raise
        raise UserError(
            f"worker {worker_index(strategy)}: another worker has ended or cannot be reached; see its output for the reason, "
            "then start the same command on all of them: they go on from the newest checkpoint"
        ) from None


def distribute(batches: tf.data.Dataset, strategy: tf.distribute.Strategy) -> Iterator[dict[str, Any]]:
    """Splits each batch of this worker over its replicas, in order.

    Args:
      batches: of dicts with leading dimension B, which the replicas of a worker can share.

    Returns:
      what `strategy.run` takes: of each key a value per replica.
    """
    replicas = strategy.num_replicas_in_sync // num_workers(strategy)

    @tf.autograph.experimental.do_not_convert
    def split(batch: dict[str, tf.Tensor]) -> tf.data.Dataset:
        parts = {
            name: tf.reshape(value, tf.concat([[replicas, value.shape[0] // replicas], tf.shape(value)[1:]], 0))
            for name, value in batch.items()
        }
        shapes = {name: [value.shape[0] // replicas, *value.shape[1:]] for name, value in batch.items()}
        slices = tf.data.Dataset.from_tensor_slices(parts)
        return slices.map(lambda part: {name: tf.ensure_shape(value, shapes[name]) for name, value in part.items()})

    def per_replica(_: tf.distribute.InputContext) -> tf.data.Dataset:
        return batches.flat_map(split) if replicas > 1 else batches

    return iter(strategy.distribute_datasets_from_function(per_replica))
