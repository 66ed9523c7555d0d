"""What a machine can do for training: TensorFlow's build, GPUs, the all-reduce, the disk, loader and step side by side.

`model.doctor` prints it. A finding that needs a remedy names it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import itertools
import platform
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import tensorflow as tf

from model.config import Config
from model.training.data_source import steps_resize
from model.training.step import Learner
from model.training.strategies import distribute
from pipeline.command import reason_of
from pipeline.loading.batches import training_batches, training_pool
from pipeline.random_draws import step_seed
from pipeline.record_folder import RecordFolder

# What TensorFlow's GPU builds load, by the packages that bring it.
CUDA_PACKAGES = ("nvidia-cublas-cu12", "nvidia-cuda-runtime-cu12", "nvidia-cudnn-cu12", "nvidia-nccl-cu12")
INSTALL_CUDA = "pip install 'tensorflow[and-cuda]==2.21.*'"
REDUCED_BYTES = 64 << 20  # of the tensor that is summed over replicas: a quarter of r50_fpn's gradients
LEAST_FREE_BYTES = 5 << 30  # on the disk of a model directory: five checkpoints of r101_fpn with its optimizer
STEPS = 3  # that are timed, after one that traces
LARGEST_BATCH_TRIED = 256


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of a diagnosis; `well` is False if it must be put right before training can do what was asked for."""

    line: str
    well: bool = True


def software() -> Finding:
    """TensorFlow, what it is built for, and Python."""
    build = tf.sysconfig.get_build_info()
    cuda = f"CUDA {build['cuda_version']}, cuDNN {build['cudnn_version']}" if build.get("is_cuda_build") else "CPU alone"
    return Finding(f"TensorFlow {tf.__version__}, built for {cuda}; Python {platform.python_version()}")


def gpus(*, required: bool) -> list[Finding]:
    """The GPUs that TensorFlow sees; if there are none, the reason and what to install.

    Args:
      required: whether a machine without a GPU is a fault.
    """
    found = tf.config.list_physical_devices("GPU")
    if found:
        return [Finding(f"{gpu.name.removeprefix('/physical_device:')}: {_gpu_details(gpu)}") for gpu in found]
    if not _has_driver():
        line = "no GPU: this machine has no NVIDIA driver; training runs on the CPU"
        return [Finding(f"{line}, and --require_gpu asks for a GPU" if required else line, well=not required)]
    if not tf.sysconfig.get_build_info().get("is_cuda_build"):
        return [Finding(f"no GPU: a driver is here, but this TensorFlow is built without CUDA; {INSTALL_CUDA}", well=False)]
    missing = [package for package in CUDA_PACKAGES if not _is_installed(package)]
    if missing:
        return [Finding(f"no GPU: a driver is here, but {', '.join(missing)} are not installed; {INSTALL_CUDA}", well=False)]
    return [Finding("no GPU: driver and CUDA are here; TF_CPP_MIN_LOG_LEVEL=0 shows TensorFlow's reason", well=False)]


def all_reduce(strategy: tf.distribute.Strategy) -> Finding:
    """The bandwidth of a sum over the replicas, as every step does it with the gradients."""
    replicas = strategy.num_replicas_in_sync
    if replicas == 1:
        return Finding("one replica: there is nothing to reduce")

    @tf.function(autograph=False)
    def reduce() -> tf.Tensor:
        def replica() -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            return tf.reduce_sum(context.all_reduce(tf.distribute.ReduceOp.SUM, tf.ones([REDUCED_BYTES // 4])))

        return strategy.experimental_local_results(strategy.run(replica))[0]

    seconds = _median_seconds(lambda: reduce().numpy())
    return Finding(f"{replicas} replicas: an all-reduce of {REDUCED_BYTES >> 20} MiB takes {1000 * seconds:.0f} ms, "
                   f"{REDUCED_BYTES / seconds / 1e9:.1f} GB/s")  # fmt: skip


def disk(folder: Path) -> Finding:
    """The free room on the disk of the model directory, which may not exist yet."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        return Finding(f"{existing} is a file; name a folder with --model_dir", well=False)
    free = shutil.disk_usage(existing).free
    enough = free >= LEAST_FREE_BYTES
    line = f"{free / 1e9:.0f} GB free at {existing}"
    return Finding(line if enough else f"{line}: checkpoints want {LEAST_FREE_BYTES / 1e9:.0f} GB; make room", well=enough)


def rates(config: Config, record_folder: RecordFolder, split: str, strategy: tf.distribute.Strategy, precision: str) -> Finding:
    """Images a second of the loader alone and of the training step alone, and which of them waits for the other.

    Raises:
      UserError: the records do not fit the configuration.
    """
    batch_size = config.train.global_batch_size
    batches = _batches(config, record_folder, split, strategy)
    first = next(iter(batches))
    started = time.perf_counter()
    loaded = sum(1 for _ in batches.take(STEPS * 4))
    loader = loaded * batch_size / (time.perf_counter() - started)
    learner = Learner(config, record_folder.skeleton, strategy, precision=precision, jit_compile=False)
    step = batch_size / _median_seconds(_step(learner, first))
    slower = "the step is what a run waits for" if loader > step else "the loader is what a run waits for: docs/LOADER.md"
    return Finding(
        f"batches of {batch_size}: the loader makes {loader:.1f} images a second, the step takes {step:.1f}; {slower}"
    )


def largest_batch(
    config: Config, record_folder: RecordFolder, split: str, strategy: tf.distribute.Strategy, precision: str
) -> Finding:
    """The largest batch, among powers of two for each replica, that the GPUs' memory holds in a training step."""
    if not tf.config.list_physical_devices("GPU"):
        return Finding("largest batch: not tried on a CPU, where a batch that is too large slows the machine down instead")
    fits, per_replica = 0, 1
    with contextlib.suppress(tf.errors.ResourceExhaustedError):
        while per_replica <= LARGEST_BATCH_TRIED:
            size = per_replica * strategy.num_replicas_in_sync
            sized = dataclasses.replace(config, train=dataclasses.replace(config.train, global_batch_size=size))
            learner = Learner(sized, record_folder.skeleton, strategy, precision=precision, jit_compile=False)
            _step(learner, next(iter(_batches(sized, record_folder, split, strategy))))()
            fits, per_replica = size, 2 * per_replica
    if not fits:
        return Finding("largest batch: not even one image for each GPU fits; choose smaller data.short_edges", well=False)
    return Finding(f"largest batch that fits in {precision}: --batch_size={fits}")


def diagnose(checks: Iterator[Callable[[], list[Finding]]], report: Callable[[str], None]) -> bool:
    """Runs checks one after the other and reports each finding as it comes.

    Args:
      report: takes a line.

    Returns:
      Whether all is well. A check that TensorFlow ends with an error is not well.
    """
    well = True
    for check in checks:
        try:
            findings = check()
        except tf.errors.OpError as error:
            findings = [Finding(f"TensorFlow fails: {reason_of(error)}", well=False)]
        for finding in findings:
            report(f"{'ok   ' if finding.well else 'WRONG'} {finding.line}")
            well &= finding.well
    return well


def _batches(config: Config, record_folder: RecordFolder, split: str, strategy: tf.distribute.Strategy) -> tf.data.Dataset:
    pool = training_pool(record_folder, split, config.data)
    return training_batches(
        record_folder,
        split,
        config.data,
        global_batch_size=config.train.global_batch_size,
        seed=config.train.seed,
        anchors=config.anchors,
        originals=steps_resize(record_folder, split, pool, config, strategy),
    )


def _step(learner: Learner, batch: dict[str, tf.Tensor]) -> Callable[[], object]:
    """A function that takes one training step with the same batch, and waits for its end."""
    shared = next(distribute(tf.data.Dataset.from_tensors(batch), learner.strategy))
    rate, seed, stop = tf.constant(0.0), tf.constant(step_seed(0, 0), tf.int32), tf.constant(0.0)
    return lambda: learner.take_step(shared, rate, seed, stop)["loss"].numpy()


def _median_seconds(act: Callable[[], object]) -> float:
    act()  # traces
    marks = [time.perf_counter()]
    for _ in range(STEPS):
        act()
        marks.append(time.perf_counter())
    return statistics.median(later - earlier for earlier, later in itertools.pairwise(marks))


def _gpu_details(gpu: tf.config.PhysicalDevice) -> str:
    details = tf.config.experimental.get_device_details(gpu)
    capability = ".".join(map(str, details.get("compute_capability", ())))
    return f"{details.get('device_name', 'unnamed')}, compute capability {capability or 'unknown'}"


def _has_driver() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
