"""Which variables are left as they are: `train.freeze` names them by patterns over their paths."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Sequence

from pipeline.command import UserError, counted

LAYERS_NAMED = 5


def frozen(paths: Iterable[str], patterns: Sequence[str]) -> set[str]:
    """The paths that a pattern matches.

    Args:
      paths: of all variables, as checkpoints name them: "backbone.layer1.0.conv1/kernel".
      patterns: as a shell's: * stands for any text, ? for one character, [12] for one of several. A pattern that stands for no
        whole path stands for the layers of that name: "fpn.inner.0" for "fpn.inner.0/kernel" and "fpn.inner.0/bias".

    Raises:
      UserError: a pattern that matches nothing; it names the paths that are nearest.
    """
    every = list(paths)
    found: set[str] = set()
    for pattern in patterns:
        matched = {path for path in every if any(fnmatch.fnmatchcase(name, pattern) for name in (path, _layer(path)))}
        if not matched:
            raise UserError(f"train.freeze={pattern}: matches no variable; {_meant(pattern, every)}")
        found |= matched
    return found


def told(paths: Iterable[str]) -> str:
    """The number of frozen variables and their layers, in words."""
    variables = list(paths)
    layers = list(dict.fromkeys(map(_layer, variables)))
    more = f" and {len(layers) - LAYERS_NAMED} more" if len(layers) > LAYERS_NAMED else ""
    return (
        f"train.freeze leaves {counted(len(variables), 'variable')} of {counted(len(layers), 'layer')} as they are: "
        f"{', '.join(layers[:LAYERS_NAMED])}{more}"
    )


def _layer(path: str) -> str:
    return path.partition("/")[0]


def _meant(pattern: str, paths: Sequence[str]) -> str:
    """Says which patterns would match, the most similar names first."""
    layers = list(dict.fromkeys(map(_layer, paths)))
    near = difflib.get_close_matches(pattern, [*layers, *paths], n=LAYERS_NAMED, cutoff=0.5)
    if near:
        return f"near it are {', '.join(near)}"
    parts = dict.fromkeys(layer.partition(".")[0] for layer in layers)
    return f"there are {', '.join(f'{part}.*' for part in parts)}"
