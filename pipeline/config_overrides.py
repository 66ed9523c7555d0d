"""Configurations, trees of frozen dataclasses: single values set by name (`--set data.num_canvases=8`), and read from JSON."""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from pipeline.command import UserError

Config = TypeVar("Config")


def override(config: Config, assignments: Sequence[str]) -> Config:
    """Applies `rpn.nms_threshold=0.6` and the like, all of a section at once: values may depend on each other.

    Args:
      config: a frozen dataclass; its sections are those of its fields that are dataclasses.

    Raises:
      UserError: no such field, or a value of another type.
    """
    tree = typing.cast(Any, config)
    sections = [f.name for f in dataclasses.fields(tree) if dataclasses.is_dataclass(getattr(tree, f.name))]
    changes: dict[str, dict[str, Any]] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        section, dot, field = path.partition(".")
        if not (equals and dot):
            raise UserError(f"--set {assignment}: must be section.field=value, such as data.num_canvases=8")
        if section not in sections:
            raise UserError(
                f"--set {assignment}: no section {section!r}{_near(section, sections)}; there are {', '.join(sections)}"
            )
        part = getattr(tree, section)
        hints = typing.get_type_hints(type(part))
        fields = [f.name for f in dataclasses.fields(part)]
        if field not in fields:
            raise UserError(f"--set {assignment}: {section} has no {field!r}{_near(field, fields)}; it has {', '.join(fields)}")
        try:
            value = _typed(_parsed(text, hints[field]), hints[field])
        except (OverflowError, ValueError, TypeError, RecursionError):
            raise UserError(
                f"--set {assignment}: {section}.{field} is {_as_typed_text(getattr(part, field))}; give a value of that type"
            ) from None
        changes.setdefault(section, {})[field] = value
    parts = {section: dataclasses.replace(getattr(tree, section), **values) for section, values in changes.items()}
    return typing.cast(Config, dataclasses.replace(tree, **parts))


def _parsed(text: str, hint: Any) -> Any:
    """The value that a text on the command line means: JSON, a word without quotes, or a list as 128,160 or [128, 160]."""
    if hint == tuple[str, ...] and not text.startswith('["'):
        return [item.strip() for item in text.strip("()").split(",") if item.strip()]
    if typing.get_origin(hint) is tuple and not text.startswith("["):
        text = f"[{text.strip('()').rstrip(',')}]"
    return text if text.isidentifier() and text not in ("true", "false", "null") else json.loads(text)


def _as_typed_text(value: Any) -> str:
    """A value as one would give it on the command line."""
    if isinstance(value, tuple):
        return ",".join(_as_typed_text(item) for item in value)
    return value if isinstance(value, str) else json.dumps(value)


def from_json(kind: type[Config], value: Mapping[str, Any]) -> Config:
    """Inverse of `dataclasses.asdict`, after JSON. A field that is missing has its default.

    Raises:
      UserError: a field that is unknown or of another type.
    """
    return typing.cast(Config, _from_json(kind, value, "config"))


def _near(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _from_json(kind: type[Any], value: Mapping[str, Any], where: str) -> Any:
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: {value!r:.40} is no JSON object with fields of {kind.__name__}")
    hints = typing.get_type_hints(kind)
    unknown = set(value) - set(hints)
    if unknown:
        raise UserError(f"{where}: unknown fields {sorted(unknown)}: written by a later version?")
    try:
        return kind(**{name: _typed(item, hints[name], f"{where}.{name}") for name, item in value.items()})
    except (OverflowError, ValueError, TypeError) as error:
        raise UserError(f"{where}: {error}") from None


def _typed(value: Any, hint: Any, where: str = "config") -> Any:
    """`value`, as it came from JSON, as the type `hint`. Raises: ValueError if it does not fit."""
    if dataclasses.is_dataclass(hint):
        return _from_json(typing.cast(type[Any], hint), value, where)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        items = [value] if isinstance(value, int | float | str) else list(value)
        return tuple(_typed(item, arguments[0], where) for item in items)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{value!r} is not one of {arguments}")
        return value
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _typed(value, next(a for a in arguments if a is not type(None)), where)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ValueError(f"{value!r} is not of type {hint.__name__}")
    return value
