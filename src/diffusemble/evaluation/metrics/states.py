"""What set metrics remember of a set: sums for Fréchet distances, the features themselves for kernels and splits.

Both add up over batches, over states and over processes; sums are kept in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch import distributed as dist

from diffusemble.evaluation.statistics import Moments, frechet_distance

T = TypeVar("T")


class MomentState:
    """Count, sum ``[d]`` and sum of outer products ``[d d]``: all that a Fréchet distance needs."""

    def __init__(self) -> None:
        self.count = 0
        self.total: Tensor | None = None
        self.outer: Tensor | None = None

    def update(self, features: Tensor) -> None:
        """Add features ``[b d]``."""
        x = checked(features).double()
        self._add(len(x), x.sum(dim=0), x.T @ x)

    def merge(self, other: MomentState) -> None:
        """Add the moments of another state."""
        if other.total is not None and other.outer is not None:
            self._add(other.count, other.total, other.outer)

    def reduce(self) -> None:
        """Sum over all processes; a process may have seen nothing."""
        if not _many():
            return
        width = _width(0 if self.total is None else len(self.total))
        where = _device()
        total = torch.zeros(width, dtype=torch.float64) if self.total is None else self.total
        outer = torch.zeros(width, width, dtype=torch.float64) if self.outer is None else self.outer
        packed = torch.cat([torch.tensor([self.count], dtype=torch.float64), total.cpu(), outer.cpu().flatten()])
        packed = packed.to(where)
        dist.all_reduce(packed)
        packed = packed.cpu()
        self.count = int(packed[0])
        self.total, self.outer = packed[1 : 1 + width], packed[1 + width :].view(width, width)

    def moments(self) -> Moments:
        """The same as arrays.

        Raises:
            ValueError: nothing was added.
        """
        if self.total is None or self.outer is None:
            raise ValueError("A Fréchet distance needs two sets of pictures; this one is empty. Add pictures first.")
        return Moments(self.count, self.total.cpu().numpy(), self.outer.cpu().numpy())

    def compute(self, reference: MomentState | None = None) -> float:
        """Fréchet distance to the reference.

        Raises:
            ValueError: no reference, or a set of fewer than two pictures.
        """
        return frechet_distance(self.moments(), wanted(reference).moments())

    def save(self, file: Path) -> None:
        """Write as safetensors."""
        moments = self.moments()
        tensors = {"total": torch.from_numpy(moments.total), "outer": torch.from_numpy(moments.outer)}
        _write(file, {"count": torch.tensor([self.count]), **tensors})

    @classmethod
    def load(cls, file: Path) -> MomentState:
        """Read what ``save`` wrote."""
        found, state = load_file(file), cls()
        state._add(int(found["count"]), found["total"], found["outer"])
        return state

    def _add(self, count: int, total: Tensor, outer: Tensor) -> None:
        if self.total is None or self.outer is None:
            self.count, self.total, self.outer = count, total.clone(), outer.clone()
            return
        same_width(len(self.total), len(total))
        self.count += count
        self.total += total.to(self.total)
        self.outer += outer.to(self.outer)


class FeatureState:
    """The features ``[n d]`` themselves, in order of rank and time; a formula makes them a number.

    Args:
        formula: takes the features of the set and, if there is a reference, those of the reference.
        needs_reference: whether the formula takes the second.
    """

    def __init__(self, formula: Callable[..., float], needs_reference: bool = True) -> None:
        self.formula, self.needs_reference = formula, needs_reference
        self.parts: list[Tensor] = []

    @property
    def count(self) -> int:
        """Number of pictures seen."""
        return sum(len(part) for part in self.parts)

    def update(self, features: Tensor) -> None:
        """Add features ``[b d]``; they are kept as float32 on the CPU."""
        new = checked(features).float().cpu()
        if self.parts:
            same_width(self.parts[0].shape[1], new.shape[1])
        self.parts.append(new)

    def merge(self, other: FeatureState) -> None:
        """Append the features of another state."""
        for part in other.parts:
            self.update(part)

    def reduce(self) -> None:
        """Gather from all processes, in order of their rank; a process may have seen nothing."""
        if not _many():
            return
        width, where = _width(self.parts[0].shape[1] if self.parts else 0), _device()
        own = torch.cat(self.parts) if self.parts else torch.zeros(0, width)
        counts = [torch.zeros(1, dtype=torch.long, device=where) for _ in range(dist.get_world_size())]
        dist.all_gather(counts, torch.tensor([len(own)], device=where))
        most = max(int(count) for count in counts)
        padded = torch.zeros(most, width, device=where)
        padded[: len(own)] = own
        gathered = [torch.zeros_like(padded) for _ in counts]
        dist.all_gather(gathered, padded)
        self.parts = [part[: int(count)].cpu() for part, count in zip(gathered, counts, strict=True) if int(count)]

    def features(self) -> Tensor:
        """All features ``[n d]``.

        Raises:
            ValueError: nothing was added.
        """
        if not self.parts:
            raise ValueError("The metric needs pictures; this set is empty. Add pictures first.")
        return torch.cat(self.parts)

    def compute(self, reference: FeatureState | None = None) -> float:
        """The formula's value.

        Raises:
            ValueError: an empty set, or no reference where one is needed.
        """
        if not self.needs_reference:
            return self.formula(self.features())
        return self.formula(self.features(), wanted(reference).features())

    def save(self, file: Path) -> None:
        """Write as safetensors."""
        _write(file, {"features": self.features()})

    def read(self, file: Path) -> None:
        """Add what ``save`` wrote."""
        self.update(load_file(file)["features"])


def checked(features: Tensor) -> Tensor:
    """The features, if they are ``[b d]`` and finite.

    Raises:
        ValueError: another shape, or numbers that are not finite.
    """
    if features.ndim != 2 or not len(features):
        raise ValueError(
            f"Statistics of sets take features [b d] with b > 0; got {tuple(features.shape)}. "
            f"Pool feature maps to one vector per picture."
        )
    if not torch.isfinite(features).all():
        bad = (~torch.isfinite(features)).any(dim=1).nonzero().flatten().tolist()
        raise ValueError(
            f"Features must be finite; those of the pictures {bad[:8]} of this batch are not. "
            f"Look at these pictures, or run the net in float32."
        )
    return features.detach()


def wanted(reference: T | None) -> T:
    """The reference, if there is one."""
    if reference is None:
        raise ValueError("This metric compares with a reference set; got none. Give the state of the real pictures.")
    return reference


def same_width(mine: int, theirs: int) -> None:
    """Raise if features of two widths meet in one set."""
    if mine != theirs:
        raise ValueError(
            f"Features of one set come from one net; this set has width {mine}, the new ones {theirs}. "
            f"Use one state for each net."
        )


def _many() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def _width(own: int) -> int:
    """Width of the features in any process, for those that have seen none."""
    widths = torch.tensor([own], device=_device())
    dist.all_reduce(widths, op=dist.ReduceOp.MAX)
    if own:
        same_width(own, int(widths))
    return int(widths)


def _write(file: Path, tensors: Mapping[str, Tensor]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, str(file))
