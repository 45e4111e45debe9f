"""Sets of systems that differ in one thing: which steps, weights, lengths, base, members, and how latents are mixed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from diffusemble.evaluation.scenes.config import THREE, SceneSystem

AUXILIARY = THREE[1:]


def system(
    name: str,
    title: str,
    kinds: tuple[str, ...] = THREE,
    base: Mapping[str, Any] | None = None,
    others: Mapping[str, Any] | None = None,
    **settings: Any,
) -> SceneSystem:
    """AMDM of members of some kinds, the base first, with settings of its base and of all others."""
    first, *rest = kinds
    members = [{"kind": first, **(base or {})}, *({"kind": kind, **(others or {})} for kind in rest)]
    return SceneSystem.model_validate({"name": name, "title": title, "members": members, **settings})


def usual() -> SceneSystem:
    """What all others of a set are compared with: AMDM with its defaults."""
    return system("amdm", "AMDM, its defaults")


def windows(steps: int) -> tuple[SceneSystem, ...]:
    """Early, middle and late windows of a third of the steps, and early ones of several lengths."""
    third = steps // 3
    middle, late = (third, 2 * third - 1), (steps - third, steps - 1)
    early = tuple(system(f"first-{share:g}", f"the first {share:.0%}", others={"window": share})
                  for share in (0.1, 0.2, 0.35, 0.5, 0.75, 1.0))  # fmt: skip
    return (
        *early,
        system("middle", f"steps {middle[0]} to {middle[1]}", others={"window": middle}),
        system("late", f"steps {late[0]} to {late[1]}", others={"window": late}),
    )


def lengths(steps: int) -> tuple[SceneSystem, ...]:
    """How far each member is drawn back to its own mean."""
    drawn = tuple(
        system(f"length-{length:g}", f"length {length:g}", base={"length": length}, others={"length": length})
        for length in (0.02, 0.05, 0.1, 0.2)
    )
    off = {"name": "amdm", "options": {"deviation": False}}
    return (system("no-deviation", "without deviation optimisation", combine=off), *drawn)


def weights(steps: int) -> tuple[SceneSystem, ...]:
    """Weight of the base; the others share the rest of the unit sphere."""
    return tuple(
        system(f"weight-{weight:g}", f"base weight {weight:g}", base={"weight": weight},
               others={"weight": ((1 - weight**2) / len(AUXILIARY)) ** 0.5})
        for weight in (0.3, 0.577, 0.7, 0.85)
    )  # fmt: skip


def bases(steps: int) -> tuple[SceneSystem, ...]:
    """Every member as the base."""
    orders = [(kind, *(other for other in THREE if other != kind)) for kind in THREE]
    return tuple(system(f"base-{order[0]}", f"{order[0]} as the base", order) for order in orders)


def members(steps: int) -> tuple[SceneSystem, ...]:
    """Each alone, pairs, and all three."""
    pairs = [(THREE[0], THREE[1]), (THREE[0], THREE[2]), (THREE[1], THREE[2])]
    return (
        *(SceneSystem.model_validate({"name": kind, "title": f"{kind} alone", "members": [kind]}) for kind in THREE),
        *(system("+".join(pair), " and ".join(pair), pair) for pair in pairs),
    )


def mixes(steps: int) -> tuple[SceneSystem, ...]:
    """How latents are mixed, which mean members are drawn to, the published code as it is, and shared noise."""
    ways: dict[str, tuple[str, dict[str, Any]]] = {
        "renormalised": ("renormalised sum", {"mix": "renormalised"}),
        "unit": ("unit weights", {"mix": "unit"}),
        "linear": ("linear mean", {"mix": "linear"}),
        "reference-mean": ("the published mean", {"mean": "reference"}),
        "published": ("the published code", {"compat": "reference"}),
    }
    return (
        *(system(name, title, combine={"name": "amdm", "options": options}) for name, (title, options) in ways.items()),
        system("shared-noise", "shared noise", shared_noise=True),
    )


VARIATIONS: Mapping[str, Callable[[int], tuple[SceneSystem, ...]]] = {
    "windows": windows,
    "lengths": lengths,
    "weights": weights,
    "bases": bases,
    "members": members,
    "mixes": mixes,
}
"""By name; each takes the number of steps. ``usual()`` is measured with every one of them."""


def variation(name: str, steps: int) -> tuple[SceneSystem, ...]:
    """The systems of a set, with the one that they are compared with first."""
    return (usual(), *VARIATIONS[name](steps))
