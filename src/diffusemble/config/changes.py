"""In what a run that would go on differs from the one that was started: the innermost thing, not all around it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_EXPERTS = ("experts", "set of experts")
"""Keys that hold names of experts, and checksums of their files by path."""
_SHOWN = 120  # characters of a value
_DIGITS = 12  # of a checksum


@dataclass(frozen=True)
class Change:
    """What has changed, and what it was and is, in words."""

    what: str
    then: str
    now: str


def first_change(then: Mapping[str, Any], now: Mapping[str, Any], keys: Iterable[str] | None = None) -> Change | None:
    """The first thing in which two runs differ; None if they do not.

    Args:
        then: everything the run that was started depends on, as JSON holds it.
        now: the same of the run that would go on.
        keys: those to compare; all by default.
    """
    for key in {**then, **now} if keys is None else keys:
        before, after = then.get(key), now.get(key)
        known = key in _EXPERTS and before and after
        found = _of_experts(_files(before), _files(after)) if known else _innermost(key, before, after)
        if found is not None:
            return found
    return None


def _files(experts: Any) -> dict[str, Mapping[str, str]]:
    listed = experts.items() if isinstance(experts, Mapping) else ((one["name"], one["files"]) for one in experts)
    return dict(listed)


def _of_experts(then: Mapping[str, Mapping[str, str]], now: Mapping[str, Mapping[str, str]]) -> Change | None:
    if list(then) != list(now):  # their order counts
        return Change("set of experts", ", ".join(then), ", ".join(now))
    for name, files in then.items():
        for file in {**files, **now[name]}:
            before, after = (own.get(file, "none")[:_DIGITS] for own in (files, now[name]))
            if before != after:
                return Change(f"file {file} of expert {name!r}", before, after)
    return None


def _innermost(key: str, then: Any, now: Any) -> Change | None:
    if then == now:
        return None
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        found = (_innermost(f"{key}.{name}", then.get(name), now.get(name)) for name in {**then, **now})
    elif _parts(then) and _parts(now) and len(then) == len(now):
        found = (_innermost(f"{key}.{place}", *pair) for place, pair in enumerate(zip(then, now, strict=True)))
    else:
        return Change(key, _short(then), _short(now))
    return next(one for one in found if one is not None)


def _parts(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(one, Mapping) for one in value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
