"""What every way to merge is: one tensor of every model in, one tensor out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from diffusemble.config.schema import Schema


@dataclass(frozen=True)
class Tensors:
    """One tensor as every model has it, in one shape and one number type that is wider than the models' own.

    Attributes:
        key: its name.
        experts: one per expert. The sequence may read each tensor when it is asked for: methods hold a few at a time,
            never one of every expert.
        base: the same of the model that differences are taken from.
    """

    key: str
    experts: Sequence[Tensor]
    base: Tensor | None = None

    @property
    def origin(self) -> Tensor:
        """The base, for methods that need one.

        Raises:
            ValueError: there is none.
        """
        if self.base is None:
            raise ValueError(f"This method takes differences from a base model, and {self.key!r} came without one.")
        return self.base


class Method:
    """Merges n experts tensor by tensor. Subclasses set what differs and implement ``amounts`` and ``merge``.

    Attributes:
        Options: the method's own options.
        exactly: how many experts it takes; any number from two up if None.
        needs_base: whether it takes differences from a base model.
        weighs: what block weights can set: the ``"shares"`` of all experts, the ``"ratios"`` of all but the first, or
            nothing.

    Raises:
        ValueError: a number of experts that the method cannot take, or options that do not fit it.
    """

    Options: ClassVar[type[Schema]] = Schema
    exactly: ClassVar[int | None] = None
    needs_base: ClassVar[bool] = False
    weighs: ClassVar[Literal["shares", "ratios"] | None] = None

    def __init__(self, options: Schema, count: int) -> None:
        if count < 2 or (self.exactly is not None and count != self.exactly):
            wanted = "two experts or more" if self.exactly is None else f"exactly {self.exactly} experts"
            raise ValueError(
                f"{type(self).__name__} merges {wanted}; got {count}. Give {wanted}"
                + (", or choose the method weighted, which takes any number." if count > 2 else ".")
            )
        self.options = options
        self.count = count
        self.amounts = self.weigh()

    def weigh(self) -> tuple[float, ...]:
        """What ``merge`` takes as ``amounts`` where no block weights say otherwise."""
        return ()

    def prepare(self, everything: Iterable[Tensors]) -> Method:
        """The method after a first pass over all tensors, for those that need one."""
        return self

    def merge(self, tensors: Tensors, amounts: Sequence[float]) -> Tensor:
        """The merged tensor, in the number type of those given."""
        raise NotImplementedError


def normalised(shares: Sequence[float] | None, count: int, what: str = "A weight average") -> tuple[float, ...]:
    """``count`` shares that sum to one; equal ones by default.

    Raises:
        ValueError: shares that do not fit or sum to zero.
    """
    parts = [1.0] * count if shares is None else list(shares)
    if len(parts) != count or sum(parts) == 0:
        raise ValueError(
            f"{what} takes one share per model, not summing to zero; got {parts} for {count} models. "
            f"Give {count} positive shares."
        )
    total = sum(parts)
    return tuple(part / total for part in parts)
