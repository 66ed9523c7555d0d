"""What is no cluster is answered before TensorFlow waits for workers that will never come."""

from __future__ import annotations

import json
from typing import Any

import pytest

from model.training.strategies import make_strategy
from pipeline.command import UserError

TASK: dict[str, Any] = {"type": "worker", "index": 0}
CLUSTER: dict[str, Any] = {"worker": ["a:1", "b:1"]}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{", "must be like"),
        ("[]", "must be like"),
        ({"cluster": CLUSTER}, "must be like"),
        ({"cluster": {"worker": 3}, "task": TASK}, "must be like"),
        ({"cluster": CLUSTER, "task": TASK | {"index": "first"}}, "must be like"),
        ({"cluster": CLUSTER, "task": {"index": 0}}, "must be like"),
        ({"cluster": CLUSTER, "task": TASK | {"index": 2}}, "task index 2 is not among its 2 workers"),
        ({"cluster": CLUSTER, "task": TASK | {"index": -1}}, "task index -1 is not among its 2 workers"),
    ],
)
def test_a_wrong_cluster_is_one_line(monkeypatch: pytest.MonkeyPatch, value: Any, message: str) -> None:
    monkeypatch.setenv("TF_CONFIG", value if isinstance(value, str) else json.dumps(value))
    with pytest.raises(UserError, match=message) as caught:
        make_strategy("multi_worker")
    assert "TF_CONFIG" in str(caught.value) and "\n" not in str(caught.value)
