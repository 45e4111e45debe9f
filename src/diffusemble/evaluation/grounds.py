"""Which expert a picture was made for: the ground of each expert, by columns of the pictures' list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from diffusemble.evaluation.pictures import Row
from diffusemble.experts.expert import Expert
from diffusemble.zoo.experts import GROUNDS

Grounds = Mapping[str, Mapping[str, Sequence[str]]]
NOBODY = "none of them"


def grounds_of(experts: Sequence[Expert], given: Grounds) -> dict[str, dict[str, list[str]]]:
    """Ground of each expert: the given one, or the zoo's for an expert of the zoo.

    Raises:
        ValueError: a ground of somebody who is no expert, or of a column that pictures do not have.
    """
    names = [expert.name for expert in experts]
    for name, ground in given.items():
        if name not in names:
            raise ValueError(f"grounds: there is no expert {name!r}. The experts are: {', '.join(names)}.")
        for column in ground:
            if column not in Row.__dataclass_fields__:
                raise ValueError(
                    f"grounds.{name}: pictures have no column {column!r}. Their columns are: "
                    f"{', '.join(Row.__dataclass_fields__)}."
                )
    found: dict[str, dict[str, list[str]]] = {}
    for expert in experts:
        own = given.get(expert.name)
        if own is None and (expert.source or "").startswith("zoo:"):
            own = GROUNDS.get((expert.source or "").removeprefix("zoo:"))
        if own:
            found[expert.name] = {column: list(values) for column, values in own.items()}
    return found


def owners(rows: Sequence[Row], grounds: Grounds) -> tuple[str | None, ...] | None:
    """For each picture the expert on whose ground it is, None if there is no such expert.

    None altogether if no picture has an owner, or if grounds overlap: then there is no one expert to ask.
    """
    found: list[str | None] = []
    for row in rows:
        mine = [name for name, ground in grounds.items() if _within(row, ground)]
        if len(mine) > 1:
            return None
        found.append(mine[0] if mine else None)
    return tuple(found) if any(found) else None


def kinds(rows: Sequence[Row], grounds: Grounds) -> tuple[str, ...]:
    """What kind of picture each is: its owner, or its topic where grounds do not tell."""
    found = owners(rows, grounds)
    return tuple(row.topic for row in rows) if found is None else tuple(one or NOBODY for one in found)


def _within(row: Row, ground: Mapping[str, Sequence[str]]) -> bool:
    return all(getattr(row, column) in values for column, values in ground.items())
