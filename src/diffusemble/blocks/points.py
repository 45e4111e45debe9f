"""Points by name, and one point for every stage of a denoiser."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from diffusemble.config.schema import nearest


def point_indices(points: Any, names: Sequence[str], anchor: int) -> Any:
    """The value of an option ``points`` with indices in place of names.

    Args:
        points: ``"levels"``; or a point's name or index, or several of them. Anything else stays as it is, for the
            combiner to judge.
        names: of all points, in running order.
        anchor: which point of every stage ``"levels"`` means; see ``Combiner``.

    Raises:
        ValueError: there is no point of a name.
    """
    if points == "levels":
        return tuple(stage[anchor] for stage in stages(names))
    if isinstance(points, (int, str)) and points not in ("all", "last"):
        points = (points,)
    if not isinstance(points, (list, tuple)):
        return points
    return tuple(_index(point, names) for point in points)


def stages(names: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Indices of the points of every stage: each level of the down path, the middle, each level of the up path.

    A name's part before its last dot is its stage (``down.1`` of ``down.1.layer0``). What stands alone before the
    first such stage (``conv_in``) belongs to it.
    """
    keyed = [(name.rpartition(".")[0] or name, index) for index, name in enumerate(names)]
    grouped = [tuple(index for _, index in part) for _, part in groupby(keyed, key=lambda pair: pair[0])]
    if len(grouped) > 1 and "." not in names[0]:
        grouped[:2] = [grouped[0] + grouped[1]]
    return tuple(grouped)


def _index(point: int | str, names: Sequence[str]) -> int:
    if isinstance(point, int):
        return point
    if point not in names:
        raise ValueError(
            f"points: these denoisers have no point {point!r}{nearest(point, names)}. Their points in running order: "
            f"{', '.join(names)}; or choose 'all', 'last' or 'levels'."
        )
    return list(names).index(point)
