r"""Runs the programs of `gpu_step.py` on this machine's first device. Needs JAX (tried: 0.7.2) and NumPy, none of this project.

  python gpu_step_run.py FOLDER --peak_tflops=989

Prints a line for each program: whether its answer is the recorded one, milliseconds, steps and images a second, TFLOP/s, their
share of --peak_tflops (MFU), and the device's peak memory. XLA counts the arithmetic in the program before it is optimised.
"""

import argparse
import gzip
import json
import statistics
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TOLERANCE = {"float32": 2e-3, "mixed_bfloat16": 5e-2, "mixed_float16": 5e-2}  # relative; convolutions of GPUs round otherwise


def patches(shape: tuple[int, ...], seed: int) -> NDArray[np.uint8]:
    """Images of random squares of 16×16 pixels, uint8 [B, H, W, 3]."""
    batch, height, width, channels = shape
    coarse = np.random.default_rng(seed).integers(0, 256, (batch, -(-height // 16), -(-width // 16), channels), dtype=np.uint8)
    images: NDArray[np.uint8] = coarse.repeat(16, axis=1).repeat(16, axis=2)[:, :height, :width]
    return images


def argument(rule: dict[str, Any], folder: Path) -> NDArray[Any]:
    """The array that a rule of `programs.json` describes, the same on every machine.

    Rules: {"fill": value}, {"normal": standard deviation, "seed": n}, {"patches": seed} and {"file": name}, each with "shape"
    and "dtype".
    """
    shape, dtype = tuple(rule["shape"]), np.dtype(rule["dtype"])
    if "fill" in rule:
        return np.full(shape, rule["fill"], dtype)
    if "normal" in rule:
        normal: NDArray[Any] = np.random.default_rng(rule["seed"]).standard_normal(shape, np.float32) * rule["normal"]
        return normal.astype(dtype)
    if "patches" in rule:
        return patches(shape, rule["patches"])
    stored: NDArray[Any] = np.load(folder / rule["file"])
    return stored.astype(dtype).reshape(shape)


class Program:
    """A program on the device: its arguments lie there, and what it updates replaces them after each call."""

    def __init__(self, folder: Path, entry: dict[str, Any]) -> None:
        import jax
        from jaxlib import xla_client

        self._aliases = {int(output): parameter for output, parameter in entry["updates"].items()}
        device = jax.devices()[0]
        computation = xla_client.XlaComputation(gzip.decompress((folder / entry["program"]).read_bytes()))
        self.operations = float(
            xla_client._xla.hlo_module_cost_analysis(device.client, computation.get_hlo_module()).get("flops", 0.0)
        )
        module = xla_client._xla.mlir.xla_computation_to_mlir_module(computation)
        devices = xla_client.DeviceList((device,))
        self._executable = device.client.compile_and_load(module, devices, xla_client.CompileOptions())
        self._arguments = [jax.device_put(argument(rule, folder), device) for rule in entry["arguments"]]

    def __call__(self) -> list[Any]:
        """The outputs, not waited for."""
        outputs = [
            arrays[0] for arrays in self._executable.execute_sharded(self._arguments).disassemble_into_single_device_arrays()
        ]
        for output, parameter in self._aliases.items():
            self._arguments[parameter] = outputs[output]
        return outputs


def measure(folder: Path, entry: dict[str, Any], seconds: float, peak_tflops: float | None) -> tuple[str, bool]:
    """The line of a program, and whether its answer is right."""
    import jax

    started = time.monotonic()
    program = Program(folder, entry)
    found = float(np.asarray(program()[entry["answer"]]).astype(np.float64).sum())
    compiling = time.monotonic() - started
    recorded = entry["recorded"]
    error = abs(found - recorded) / max(abs(recorded), 1e-6) if recorded is not None else None
    well = error is None or error <= TOLERANCE[entry["precision"]]
    times: list[float] = []
    started = time.monotonic()
    while len(times) < 3 or time.monotonic() - started < seconds:
        before = time.monotonic()
        np.asarray(program()[entry["answer"]])
        times.append(time.monotonic() - before)
    median = statistics.median(times)
    tflops = program.operations / median / 1e12
    statistics_of_memory = jax.devices()[0].memory_stats() or {}
    parts = [
        f"{entry['name']:<34}",
        f"{entry['answer_name']} {found:.5g} "
        + ("(not recorded)" if error is None else f"({'as recorded' if well else f'WRONG, {recorded:.5g} recorded'})"),
        f"{1000 * median:.1f} ms, {1 / median:.2f} steps/s, {entry['batch_size'] / median:.2f} images/s",
        f"{tflops:.2f} TFLOP/s",
    ]
    if peak_tflops:
        parts.append(f"MFU {tflops / peak_tflops:.1%}")
    if "peak_bytes_in_use" in statistics_of_memory:
        parts.append(f"peak of the process so far {statistics_of_memory['peak_bytes_in_use'] / 1e9:.1f} GB")
    parts.append(f"compiled in {compiling:.0f} s")
    return "; ".join(parts), well


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="What gpu_step.py wrote.")
    parser.add_argument("--seconds", type=float, default=5.0, help="How long each program is measured, after its first call.")
    parser.add_argument("--peak_tflops", type=float, help="The device's peak at the programs' precision; MFU is a share of it.")
    parser.add_argument("--only", default="", help="Runs the programs whose name holds this text.")
    flags = parser.parse_args()
    import jax

    jax.config.update("jax_enable_x64", True)  # image ids are int64
    listed = json.loads((flags.folder / "programs.json").read_text())
    for name, checksum in listed["checksums"].items():
        if zlib.crc32((flags.folder / name).read_bytes()) != checksum:
            raise SystemExit(f"error: {flags.folder / name} is not as it was written; copy it again")
    chosen = [entry for entry in listed["programs"] if flags.only in entry["name"]]
    if not chosen:
        raise SystemExit(f"error: --only={flags.only}: no program's name holds it")
    print(f"{jax.devices()[0].device_kind}, JAX {jax.__version__}; written by TensorFlow {listed['tensorflow']}", flush=True)
    wrong = 0
    for entry in chosen:
        line, well = measure(flags.folder, entry, flags.seconds, flags.peak_tflops)
        wrong += not well
        print(line, flush=True)
    if wrong:
        raise SystemExit(f"error: {wrong} of {len(chosen)} programs answer otherwise than TensorFlow did")


if __name__ == "__main__":
    main()
