"""How well a picture shows a scene: things, colours, places, relation and style, without a detector.

The counterpart of COCO-MIG's measures (MIGC, arXiv 2402.05408): proposals come from the ink on plain paper instead of
GroundingDINO, names from a probe on crops, and the share of a colour is taken over a find's own ink.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean

import torch
from torch import Tensor

from diffusemble.evaluation.scenes.boxes import iou, stands
from diffusemble.evaluation.scenes.finds import Find, finds
from diffusemble.evaluation.scenes.probe import SceneProbe
from diffusemble.evaluation.scenes.scene import Scene, Thing

PLACED = 0.5  # least overlap of a thing in its place


@dataclass(frozen=True)
class Seen:
    """What became of one thing.

    Attributes:
        named: some find is this thing, by the probe.
        coloured: that find has the asked colour; of things without a colour: as ``named``.
        overlap: its intersection over union with the asked box; 0 without a find.
        filled: the same for the best of all finds, whatever they show.
    """

    named: bool
    coloured: bool
    overlap: float
    filled: float

    @property
    def right(self) -> bool:
        """The instance succeeds: the right thing in its colour in its place."""
        return self.named and self.coloured and self.overlap >= PLACED


@dataclass(frozen=True)
class Judgement:
    """What became of a scene.

    Attributes:
        things: in the scene's order.
        relation: the first two were found and stand as asked.
        style: the probe sees the scene's style.
    """

    things: tuple[Seen, ...]
    relation: bool
    style: bool

    @property
    def attributes(self) -> bool:
        """Every thing was found, in its colour."""
        return all(seen.named and seen.coloured for seen in self.things)

    @property
    def right(self) -> bool:
        """The scene succeeds: relation, every thing in its colour, and style."""
        return self.relation and self.attributes and self.style

    def measures(self) -> dict[str, float]:
        """All measures of this scene, 0 to 1, higher is better."""
        return {
            "scene": float(self.right),
            "relation": float(self.relation),
            "attributes": float(self.attributes),
            "style": float(self.style),
            "instance": mean(float(seen.right) for seen in self.things),
            "thing": mean(float(seen.named) for seen in self.things),
            "colour": mean(float(seen.coloured) for seen in self.things),
            "iou": mean(seen.overlap for seen in self.things),
            "filled": mean(seen.filled for seen in self.things),
        }


@dataclass(frozen=True)
class Recognised:
    """A find with the probe's log-probabilities of things and styles."""

    find: Find
    things: Tensor
    styles: Tensor


class SceneJudge:
    """Judges pictures of scenes.

    Args:
        probe: names crops.
        features: features ``[b 2560]`` of crops ``[b 3 h w]`` in [0, 1]: ``AllNets()``.
    """

    def __init__(self, probe: SceneProbe, features: Callable[[Tensor], Tensor]) -> None:
        self.probe, self.features = probe, features

    def __call__(self, image: Tensor, scene: Scene) -> Judgement:
        """Judge an image ``[3 h w]`` in [0, 1].

        Raises:
            ValueError: the probe does not know a thing or the style of the scene.
        """
        self._check(scene)
        return judge(scene, self.recognise(image), self.probe.names, self.probe.styles)

    def recognise(self, image: Tensor) -> list[Recognised]:
        """All finds of an image ``[3 h w]`` in [0, 1], with what the probe says of them."""
        found = finds(image)
        if not found:
            return []
        things, styles = self.probe(self.features(torch.stack([find.crop for find in found])))
        return [Recognised(*parts) for parts in zip(found, things, styles, strict=True)]

    def _check(self, scene: Scene) -> None:
        unknown = [thing.name for thing in scene.things if thing.name not in self.probe.names]
        unknown += [scene.style] if scene.style not in self.probe.styles else []
        if unknown:
            raise ValueError(
                f"The scene probe knows {len(self.probe.names)} things and the styles {', '.join(self.probe.styles)}; "
                f"the scene asks for {', '.join(map(repr, unknown))}. See recipes/zoo/scenes/scenes.yaml."
            )


def judge(scene: Scene, seen: Sequence[Recognised], names: Sequence[str], styles: Sequence[str]) -> Judgement:
    """A scene's judgement from its recognised finds.

    Args:
        scene: what was asked for.
        seen: the finds.
        names: of things, in the order of the log-probabilities.
        styles: likewise.
    """
    chosen = [_choose(thing, seen, names.index(thing.name)) for thing in scene.things]
    things = tuple(_seen(thing, found, seen) for thing, found in zip(scene.things, chosen, strict=True))
    first, second = chosen[:2]
    related = first is not None and second is not None and stands(scene.relation, first.box, second.box)
    style = bool(seen) and int(torch.stack([one.styles for one in seen]).mean(dim=0).argmax()) == styles.index(
        scene.style
    )
    return Judgement(things, related, style)


def _choose(thing: Thing, seen: Sequence[Recognised], row: int) -> Find | None:
    """Of the finds that the probe takes for the thing, the one nearest its box; the surest if none is near."""
    named = [one for one in seen if int(one.things.argmax()) == row]
    best = max(named, key=lambda one: (iou(one.find.box, thing.box), float(one.things[row])), default=None)
    return best.find if best else None


def _seen(thing: Thing, found: Find | None, seen: Sequence[Recognised]) -> Seen:
    return Seen(
        named=found is not None,
        coloured=found is not None and thing.colour in (None, found.colour),
        overlap=iou(found.box, thing.box) if found else 0.0,
        filled=max((iou(one.find.box, thing.box) for one in seen), default=0.0),
    )
