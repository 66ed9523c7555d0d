"""How the workers of a cluster share an evaluation: each answers some of the images, and all learn all answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any


@dataclasses.dataclass(frozen=True)
class Share:
    """One worker's part in what several do together.

    Attributes:
      index, workers: which worker this is, of how many.
      exchange: gives a value that JSON can hold to all workers, and returns those of all, by worker. Every worker calls it as
        often as the others, and in the same order among all that they do together. It raises tf.errors.UnavailableError if
        another worker has ended.
    """

    index: int
    workers: int
    exchange: Callable[[Any], list[Any]]

    def any(self, value: bool) -> bool:
        """Whether the value is true on some worker; all of them call it."""
        return any(self.exchange(value))

    def in_turn(self, own: Iterator[Any], total: int) -> Iterator[Any]:
        """The values of all workers in turn, the first worker's first: `total` of them.

        Args:
          own: this worker's: of the values 0 to `total` − 1 those whose number is `index` modulo `workers`.
        """
        for first in range(0, total, self.workers):
            mine = next(own) if first + self.index < total else None
            yield from self.exchange(mine)[: total - first]
