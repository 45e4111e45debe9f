"""What can be seen of a denoiser from outside: how often it is called, and its predictions before guidance."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

TOLERANCE = 0.02  # of the largest value; a half-precision pipeline rounds about this much


class Watch:
    """Counts calls and keeps what comes out, by a forward hook that is there only while its member draws.

    Args:
        denoiser: may be shared; calls from other threads are not seen. None is not watched.

    Attributes:
        calls: so far; None without a denoiser.
    """

    def __init__(self, denoiser: nn.Module | None) -> None:
        self._denoiser = denoiser
        self._thread = 0
        self._seen: list[Tensor] = []
        self.calls = None if denoiser is None else 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the calls of this thread."""
        self._thread = threading.get_ident()
        handle = self._denoiser.register_forward_hook(self._see) if self._denoiser is not None else None
        try:
            yield
        finally:
            if handle is not None:
                handle.remove()

    def halves(self, batch: int, pipeline: Any) -> tuple[Tensor, Tensor] | None:
        """Predictions without and with the prompt for ``batch`` latents, from what was seen since the last time.

        None unless ``pipeline`` guides by one call of two rows for each of the latents.
        """
        seen, self._seen = self._seen, []
        # Perturbed-attention guidance alone has two rows as well, but both with the prompt.
        guided = getattr(pipeline, "do_classifier_free_guidance", True)
        if not guided or len(seen) != 1 or len(seen[0]) != 2 * batch:
            return None
        without, with_prompt = seen[0].chunk(2)
        return without, with_prompt

    def _see(self, module: nn.Module, args: Any, output: Any) -> None:
        if threading.get_ident() == self._thread:
            self.calls = (self.calls or 0) + 1
            self._seen.append(output[0] if isinstance(output, tuple) else output.sample)


def guidance_scale(
    halves: tuple[Tensor, Tensor] | None, prediction: Tensor, pipeline: Any, call: Mapping[str, Any]
) -> float | None:
    """Scale that joined the halves; None where the prediction is not without + scale (with - without)."""
    parameter = inspect.signature(type(pipeline).__call__).parameters.get("guidance_scale")
    scale = call.get("guidance_scale", None if parameter is None else parameter.default)
    if halves is None or not isinstance(scale, (int, float)):
        return None
    without, with_prompt = halves
    error = (without + scale * (with_prompt - without) - prediction).abs().max()
    return float(scale) if error <= TOLERANCE * prediction.abs().max() else None
