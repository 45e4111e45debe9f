"""Distances between sets of features, and intervals of paired differences: pure functions in float64.

Frechet distance: Heusel et al. 2017 (arXiv 1706.08500). Kernel distance: Binkowski et al. 2018 (arXiv 1801.01401).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """Count, sum ``[d]`` and sum of outer products ``[d d]`` of features; sets merge by adding their moments."""

    count: int
    total: Array
    outer: Array

    @classmethod
    def of(cls, features: ArrayLike) -> Moments:
        """Moments of features ``[n d]``."""
        x = _matrix(features, "features")
        return cls(len(x), x.sum(axis=0), x.T @ x)

    def __add__(self, other: Moments) -> Moments:
        """Moments of both sets together."""
        return Moments(self.count + other.count, self.total + other.total, self.outer + other.outer)

    @property
    def mean(self) -> Array:
        """Mean ``[d]``."""
        return self.total / self.count

    @property
    def covariance(self) -> Array:
        """Unbiased covariance ``[d d]``.

        Raises:
            ValueError: fewer than two features.
        """
        if self.count < 2:
            raise ValueError(f"A covariance needs at least two features; got {self.count}. Give more images.")
        centered = self.outer - np.outer(self.total, self.mean)
        return centered / (self.count - 1)


def frechet_distance(a: Moments, b: Moments) -> float:
    """|μ_a - μ_b|² + tr(Σ_a + Σ_b - 2 (Σ_a Σ_b)^½), the squared 2-Wasserstein distance of two Gaussians.

    The trace of the root is taken from the eigenvalues of Σ_a^½ Σ_b Σ_a^½, which is symmetric.
    With n features of width d and n < d the covariances are singular and the value is biased upwards: compare
    systems only at equal n.
    """
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    return _frechet(a, b, root @ b.covariance @ root)


def frechet_distance_to(reference: Moments, features: ArrayLike) -> float:
    """The same from few features ``[n d]`` to a reference, in the time of an ``[n n]`` problem.

    With centred features X, Σ_a Σ_b has the nonzero eigenvalues of X Σ_a Xᵀ / (n - 1).
    """
    x = _matrix(features, "features")
    centered = x - x.mean(axis=0)
    return _frechet(reference, Moments.of(x), centered @ reference.covariance @ centered.T / (len(x) - 1))


def _frechet(a: Moments, b: Moments, product: Array) -> float:
    cross = np.sqrt(np.clip(np.linalg.eigvalsh((product + product.T) / 2), 0, None)).sum()
    gap = a.mean - b.mean
    spread = np.trace(a.covariance) + np.trace(b.covariance)
    return float(max(gap @ gap + spread - 2 * cross, 0.0))


def polynomial_kernel(x: Array, y: Array) -> Array:
    """k(x, y) = (x·y / d + 1)³ for ``[n d]`` and ``[m d]``: ``[n m]``."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def gaussian_kernel(x: Array, y: Array, width: float = 10.0) -> Array:
    """k(x, y) = exp(-|x - y|² / 2σ²) for ``[n d]`` and ``[m d]``: ``[n m]``; ``width`` is σ."""
    squares = np.square(x).sum(axis=1)[:, None] + np.square(y).sum(axis=1) - 2 * x @ y.T
    return np.exp(-np.clip(squares, 0, None) / (2 * width**2))


def kernel_distance(x: ArrayLike, y: ArrayLike) -> float:
    """KID: unbiased squared maximum mean discrepancy of features ``[n d]`` and ``[m d]`` under the polynomial kernel.

    It is taken over all features at once, which is what the usual mean over random subsets estimates. It can be a
    little below zero for equal distributions.
    """
    a, b = _matrix(x, "x"), _matrix(y, "y")
    within = sum(_kernel_mean(polynomial_kernel, z, z, skip_own=True) for z in (a, b))
    return float(within - 2 * _kernel_mean(polynomial_kernel, a, b))


def clip_discrepancy(x: ArrayLike, y: ArrayLike) -> float:
    """CMMD: 1000 × squared maximum mean discrepancy of unit features ``[n d]``, ``[m d]``, Gaussian kernel, σ = 10.

    Jayasumana et al. 2024 (arXiv 2401.09603). As published it is the biased estimate, which counts each feature with
    itself: it is never below zero, and zero only for equal sets.
    """
    a, b = _matrix(x, "x"), _matrix(y, "y")
    within = sum(_kernel_mean(gaussian_kernel, z, z) for z in (a, b))
    return float(1000 * (within - 2 * _kernel_mean(gaussian_kernel, a, b)))


def kernel_gap(x: ArrayLike, y: ArrayLike, reference: ArrayLike, groups: Sequence[str] | None = None) -> Interval:
    """KID(x, r) - KID(y, r) for paired ``x, y [n d]`` (same prompts and seeds), with its jackknife interval.

    The reference r is taken as given, so its own term cancels and only the sampling of the pairs counts. Each of
    ``groups`` is left out in turn as a whole (each image by default); a set too small for that has no bounds.
    """
    a, b, r = _matrix(x, "x"), _matrix(y, "y"), _matrix(reference, "reference")
    if len(a) != len(b):
        raise ValueError(f"Paired sets have equal sizes; got {len(a)} and {len(b)}. Give the same prompts and seeds.")
    _, index = np.unique(np.arange(len(a)) if groups is None else np.asarray(groups), return_inverse=True)
    if len(a) - np.bincount(index).max() < 2:
        return Interval(kernel_distance(a, r) - kernel_distance(b, r), -np.inf, np.inf)
    parts = _left_out(a, r, index) - _left_out(b, r, index)
    n = len(parts) - 1
    spread = np.sqrt((n - 1) / n * np.square(parts[1:] - parts[1:].mean()).sum())
    return Interval(float(parts[0]), float(parts[0] - 1.96 * spread), float(parts[0] + 1.96 * spread))


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % confidence interval."""

    value: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether zero lies outside."""
        return self.low > 0 or self.high < 0


def paired_bootstrap(
    differences: ArrayLike, groups: Sequence[str] | None = None, samples: int = 10_000, seed: int = 0
) -> Interval:
    """Mean of paired differences ``[n]`` with its percentile bootstrap interval.

    Args:
        differences: one number per image, system minus reference.
        groups: what each image belongs to (its concept); images of one group are drawn together, because they are not
            independent. Each image is its own group by default.
        samples: bootstrap samples.
        seed: of the samples.
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(
            f"A paired interval needs one difference per image, shape [n] with n > 0; got {values.shape}. "
            f"Check that the set of images is not empty."
        )
    _, index = np.unique(np.arange(len(values)) if groups is None else np.asarray(groups), return_inverse=True)
    sums, counts = np.bincount(index, values), np.bincount(index)
    rng = np.random.default_rng(seed)
    means = np.empty(samples)
    for start in range(0, samples, 500):  # in pieces, so that memory does not grow with the samples
        drawn = rng.integers(len(sums), size=(min(500, samples - start), len(sums)))
        means[start : start + 500] = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))


def win_rate(scores: ArrayLike, reference: ArrayLike, better: Callable[[Array, Array], Array] = np.less) -> float:
    """Share of images on which ``scores [n]`` beat ``reference [n]``; a tie counts one half."""
    a, b = np.asarray(scores, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    return float(np.mean(better(a, b) + 0.5 * (a == b)))


def _left_out(x: Array, reference: Array, index: NDArray[np.intp]) -> Array:
    """U-statistic mean k(x, x') - 2 mean k(x, r): of all of x, then without each group, ``[1 + g]``."""
    own = polynomial_kernel(x, x)
    np.fill_diagonal(own, 0)
    member = np.eye(index.max() + 1)[index]  # [n g]
    within = (member * (own @ member)).sum(axis=0)
    cross = polynomial_kernel(x, reference).mean(axis=1)
    left = len(x) - member.sum(axis=0)
    whole = own.sum() / (len(x) * (len(x) - 1)) - 2 * cross.mean()
    rest = own.sum() - 2 * own.sum(axis=1) @ member + within
    without = rest / (left * (left - 1)) - 2 * (cross.sum() - cross @ member) / left
    return np.concatenate([[whole], without])


def _kernel_mean(kernel: Callable[[Array, Array], Array], x: Array, y: Array, skip_own: bool = False) -> float:
    """Mean of k(x, y) over all pairs, or over those of different rows; by rows, so that memory stays bounded."""
    total = 0.0
    for start in range(0, len(x), 1024):
        part = kernel(x[start : start + 1024], y)
        total += part.sum() - (np.trace(part, offset=start) if skip_own else 0.0)
    return float(total / (len(x) * (len(y) - skip_own)))


def _matrix(features: ArrayLike, name: str) -> Array:
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(
            f"{name} must be at least two features, shape [n d] with n >= 2; got {x.shape}. Give more images."
        )
    return x
