"""Several workers look at an evaluation's images in turn, and all learn all answers."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from model.evaluation.share import Share


def shares(workers: int) -> list[Share]:
    """Those of threads, which stand for processes."""
    barrier, given = threading.Barrier(workers, timeout=30), [None] * workers

    def share(index: int) -> Share:
        def exchange(value: Any) -> list[Any]:
            given[index] = value
            barrier.wait()
            found = list(given)
            barrier.wait()
            return found

        return Share(index, workers, exchange)

    return [share(index) for index in range(workers)]


@pytest.mark.parametrize("total", [0, 1, 2, 3, 7, 9])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_every_value_comes_once_and_in_order_to_every_worker(workers: int, total: int) -> None:
    def gather(share: Share) -> list[Any]:
        return list(share.in_turn((f"value {n}" for n in range(share.index, total, workers)), total))

    with ThreadPoolExecutor(workers) as pool:
        assert list(pool.map(gather, shares(workers))) == [[f"value {n}" for n in range(total)]] * workers


def test_what_one_worker_knows_all_know() -> None:
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda share: share.any(share.index == 0), shares(3))) == [True] * 3
        assert list(pool.map(lambda share: share.any(False), shares(3))) == [False] * 3
