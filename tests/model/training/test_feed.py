from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator

import pytest

from model.training.feed import Feed


def never(seconds: float) -> bool:
    raise AssertionError("nothing was waited for")


def test_values_come_one_by_one_and_not_ahead() -> None:
    made: list[int] = []

    def values() -> Iterator[int]:
        for number in itertools.count():
            made.append(number)
            yield number

    with Feed(values()) as feed:
        for number in range(3):
            assert made == list(range(number))
            assert feed.take(never) == number


def test_what_the_iterator_raises_is_raised() -> None:
    def values() -> Iterator[int]:
        yield 1
        raise ValueError("damaged")

    with Feed(values()) as feed:
        assert feed.take(never) == 1
        with pytest.raises(ValueError, match="damaged"):
            feed.take(never)
        with pytest.raises(StopIteration):
            feed.take(never)


def test_patience_is_asked_while_there_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Feed, "SECONDS_BETWEEN_LOOKS", 0.25)
    there = threading.Event()

    def values() -> Iterator[str]:
        for name in ("late", "never"):
            there.wait()
            there.clear()
            yield name

    looks: list[float] = []

    def patience(seconds: float) -> bool:
        looks.append(seconds)
        if len(looks) == 3:
            there.set()
        return len(looks) < 6

    with Feed(values()) as feed:
        assert feed.take(patience) == "late"
        assert looks[:3] == [0.25, 0.5, 0.75]
        assert feed.take(patience) is None
        assert len(looks) >= 6
    there.set()


def test_the_thread_ends_with_the_feed() -> None:
    with Feed(itertools.count()) as feed:
        feed.take(never)
    feed._thread.join(timeout=10)
    assert not feed._thread.is_alive()
