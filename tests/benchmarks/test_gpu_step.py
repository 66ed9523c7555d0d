"""The step that leaves TensorFlow as a program gives the same loss where JAX runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu_step_run import argument, patches
from benchmarks.measuring import environment_python

ROOT = Path(__file__).parents[2]


def test_rules_give_the_same_arrays_again(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(6))
    rules: list[dict[str, Any]] = [{"fill": 1.5}, {"normal": 0.1, "seed": 3}, {"file": "a.npy"}]
    for rule in rules:
        rule |= {"shape": [2, 3], "dtype": "float32"}
        array = argument(rule, tmp_path)
        assert array.shape == (2, 3) and array.dtype == np.float32
        np.testing.assert_array_equal(array, argument(rule, tmp_path))
    image = patches((1, 40, 50, 3), 0)
    assert image.shape == (1, 40, 50, 3) and len(np.unique(image[0, :16, :16].reshape(-1, 3), axis=0)) == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_jax_answers_as_tensorflow_does(tmp_path: Path) -> None:
    python = environment_python("jax")
    if python is None:
        pytest.skip("no environment of JAX; bash benchmarks/environments.sh jax makes it")
    command = [sys.executable, "-m", "benchmarks.gpu_step", "--preset=tiny", f"--output_dir={tmp_path / 'step'}"]
    command += ["--batch_sizes=2", "--height=64", "--width=96", "--persons=2", "--precisions=float32", "--measure=training"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (program,) = json.loads((tmp_path / "step" / "programs.json").read_text())["programs"]
    assert program["recorded"] is not None and len(program["updates"]) > 100  # weights and their momentum
    run = [str(python), str(ROOT / "benchmarks" / "gpu_step_run.py"), str(tmp_path / "step"), "--seconds=0"]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "(as recorded)" in done.stdout, done.stdout + done.stderr
    program["recorded"] *= 1.01
    listed = {"tensorflow": "", "checksums": {}, "programs": [program]}
    (tmp_path / "step" / "programs.json").write_text(json.dumps(listed))
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "WRONG" in done.stdout and "answer otherwise" in done.stderr
