"""Sets of systems that differ in one thing: which steps, weights, lengths, base, members, and how latents are mixed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any

from diffusemble.evaluation.scenes.systems import PEERS, SceneSystem

Kinds = tuple[str, ...]


def system(
    name: str,
    title: str,
    kinds: Kinds,
    base: Mapping[str, Any] | None = None,
    others: Mapping[str, Any] | None = None,
    **settings: Any,
) -> SceneSystem:
    """AMDM of members of some kinds, the base first, with settings of its base and of all others."""
    first, *rest = kinds
    members = [{"kind": first, **(base or {})}, *({"kind": kind, **(others or {})} for kind in rest)]
    return SceneSystem.model_validate({"name": name, "title": title, "members": members, **settings})


def usual(kinds: Kinds) -> SceneSystem:
    """What all others of a set are compared with: AMDM with its defaults."""
    return system("amdm", "AMDM, its defaults", kinds)


def windows(kinds: Kinds, steps: int) -> tuple[SceneSystem, ...]:
    """Early, middle and late windows of a third of the steps, and early ones of several lengths."""
    third = steps // 3
    middle, late = (third, 2 * third - 1), (steps - third, steps - 1)
    early = tuple(system(f"first-{share:g}", f"the first {share:.0%}", kinds, others={"window": share})
                  for share in (0.1, 0.2, 0.35, 0.5, 0.75, 1.0))  # fmt: skip
    return (
        *early,
        system("middle", f"steps {middle[0]} to {middle[1]}", kinds, others={"window": middle}),
        system("late", f"steps {late[0]} to {late[1]}", kinds, others={"window": late}),
    )


def lengths(kinds: Kinds, steps: int) -> tuple[SceneSystem, ...]:
    """How far each member is drawn back to its own mean."""
    drawn = tuple(
        system(f"length-{length:g}", f"length {length:g}", kinds, base={"length": length}, others={"length": length})
        for length in (0.02, 0.05, 0.1, 0.2)
    )
    off = {"name": "amdm", "options": {"deviation": False}}
    return (system("no-deviation", "without deviation optimisation", kinds, combine=off), *drawn)


def weights(kinds: Kinds, steps: int) -> tuple[SceneSystem, ...]:
    """Weight of the base; the others share the rest of the unit sphere."""
    return tuple(
        system(
            f"weight-{weight:g}",
            f"base weight {weight:g}",
            kinds,
            base={"weight": weight},
            others={"weight": ((1 - weight**2) / (len(kinds) - 1)) ** 0.5},
        )
        for weight in (0.3, 0.577, 0.7, 0.85)
    )


def bases(kinds: Kinds, steps: int) -> tuple[SceneSystem, ...]:
    """Every member as the base."""
    orders = [(kind, *(other for other in kinds if other != kind)) for kind in kinds]
    return tuple(system(f"base-{order[0]}", f"{order[0]} as the base", order) for order in orders)


def members(kinds: Kinds, steps: int) -> tuple[SceneSystem, ...]:
    """Each alone, and all pairs."""
    return (
        *(SceneSystem.model_validate({"name": kind, "title": f"{kind} alone", "members": [kind]}) for kind in kinds),
        *(system("+".join(pair), " and ".join(pair), pair) for pair in combinations(kinds, 2)),
    )


def mixes(kinds: Kinds, steps: int) -> tuple[SceneSystem, ...]:
    """How latents are mixed, which mean members are drawn to, the published code as it is, and shared noise."""
    ways: dict[str, tuple[str, dict[str, Any]]] = {
        "renormalised": ("renormalised sum", {"mix": "renormalised"}),
        "unit": ("unit weights", {"mix": "unit"}),
        "linear": ("linear mean", {"mix": "linear"}),
        "reference-mean": ("the published mean", {"mean": "reference"}),
        "published": ("the published code", {"compat": "reference"}),
    }
    return (
        *(
            system(f"mix-{name}", title, kinds, combine={"name": "amdm", "options": options})
            for name, (title, options) in ways.items()
        ),
        system("shared-noise", "shared noise", kinds, shared_noise=True),
    )


def peers(kinds: Kinds, steps: int) -> tuple[SceneSystem, ...]:
    """The base told everything, each member alone, and every other way to combine, for as long as AMDM and longer."""
    ways = [system(way, f"{way}", kinds, combine=way) for way in PEERS]
    longer = [system(f"{way}-all", f"{way} in all steps", kinds, others={"window": 1.0}, combine=way) for way in PEERS]
    told = SceneSystem.model_validate({"name": "base", "title": "the base, told everything", "members": ["plain"]})
    return (told, *members(kinds, steps)[: len(kinds)], *ways, *longer)


VARIATIONS: Mapping[str, Callable[[Kinds, int], tuple[SceneSystem, ...]]] = {
    "windows": windows,
    "lengths": lengths,
    "weights": weights,
    "bases": bases,
    "members": members,
    "mixes": mixes,
    "peers": peers,
}
"""By name; each takes the kinds of members, the base first, and the number of steps."""


def variation(name: str, kinds: Kinds, steps: int) -> tuple[SceneSystem, ...]:
    """The systems of a set, with the one that they are compared with first: AMDM with its defaults."""
    return (usual(kinds), *VARIATIONS[name](kinds, steps))
