"""What a scene asks for: things with colours in boxes, one relation between the first two, and a style."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Box = tuple[float, float, float, float]  # left, top, right, bottom; 0 to 1 of the picture's sides

RELATIONS = ("left of", "right of", "above", "below", "on", "holding")


@dataclass(frozen=True)
class Thing:
    """One thing of a scene.

    Attributes:
        name: as captions say it.
        box: where it stands.
        colour: None: whatever colour.
    """

    name: str
    box: Box
    colour: str | None = None

    @property
    def phrase(self) -> str:
        """The thing with its colour: ``red cat``."""
        return f"{self.colour} {self.name}" if self.colour else self.name


@dataclass(frozen=True)
class Scene:
    """Things, of which the first stands in ``relation`` to the second.

    Attributes:
        things: two at least; subject and object first.
        relation: one of ``RELATIONS``.
        style: of the whole picture.

    Raises:
        ValueError: fewer than two things, an unknown relation, or a box that is empty or not inside 0 to 1.
    """

    things: tuple[Thing, ...]
    relation: str
    style: str

    def __post_init__(self) -> None:
        if len(self.things) < 2:
            raise ValueError(f"A scene has a subject and an object, so two things at least; got {len(self.things)}.")
        if self.relation not in RELATIONS:
            raise ValueError(f"Unknown relation {self.relation!r}. Choose one of: {', '.join(RELATIONS)}.")
        for thing in self.things:
            left, top, right, bottom = thing.box
            if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
                raise ValueError(
                    f"A box is left, top, right, bottom in 0 to 1 with left < right and top < bottom; "
                    f"that of {thing.phrase!r} is {thing.box}."
                )

    def caption(self, *, colours: bool = True, relation: bool = True, style: bool = True) -> str:
        """``red cat left of blue fish, green tree, twemoji style``, or less of it."""
        names = [thing.phrase if colours else thing.name for thing in self.things]
        parts = [f"{names[0]} {self.relation} {names[1]}", *names[2:]] if relation else names
        return ", ".join([*parts, f"{self.style} style"] if style else parts)

    def as_row(self) -> dict[str, Any]:
        """Plain data, for a line of JSON."""
        things = [{"name": t.name, "box": list(t.box), "colour": t.colour} for t in self.things]
        return {"things": things, "relation": self.relation, "style": self.style}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Scene:
        """What ``as_row`` gave."""
        things = tuple(Thing(t["name"], tuple(t["box"]), t["colour"]) for t in row["things"])
        return cls(things, row["relation"], row["style"])
