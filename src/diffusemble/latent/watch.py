"""What can be seen of a denoiser from outside: how often it is called, and its predictions before guidance."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator, Mapping, Sequence
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

    def seen(self) -> list[Tensor]:
        """What came out since the last time, call by call."""
        seen, self._seen = self._seen, []
        return seen

    def _see(self, module: nn.Module, args: Any, output: Any) -> None:
        if threading.get_ident() == self._thread:
            self.calls = (self.calls or 0) + 1
            self._seen.append(output if isinstance(output, Tensor) else output[0])


def guidance(
    seen: Sequence[Tensor], prediction: Tensor, pipeline: Any, call: Mapping[str, Any]
) -> tuple[tuple[Tensor, Tensor] | None, float | None]:
    """Predictions without and with the prompt, and the scale that joined them; None where they cannot be told.

    Args:
        seen: outputs of the denoiser before this prediction: one with an unconditional and a conditional half, or two,
            with the prompt first (FLUX and others with a true guidance scale).
        prediction: guided ``[b ...]``.
        pipeline: that guided it.
        call: its arguments.
    """
    rows = [len(output) for output in seen]
    batch = len(prediction)
    # Perturbed-attention guidance alone has two rows as well, but both with the prompt.
    if not getattr(pipeline, "do_classifier_free_guidance", True) or rows not in ([2 * batch], [batch, batch]):
        return None, None
    without, with_prompt = seen[0].chunk(2) if len(seen) == 1 else (seen[1], seen[0])
    tolerance = TOLERANCE * prediction.abs().max()
    for scale in _scales(pipeline, call):
        joined = without + scale * (with_prompt - without)
        if joined.shape == prediction.shape and (joined - prediction).abs().max() <= tolerance:
            return (without, with_prompt), scale
    return ((without, with_prompt) if len(seen) == 1 else None), None


def _scales(pipeline: Any, call: Mapping[str, Any]) -> Iterator[float]:
    """Guidance scales that the call has or leaves at their defaults."""
    parameters = inspect.signature(type(pipeline).__call__).parameters
    for name in ("guidance_scale", "true_cfg_scale"):
        scale = call.get(name, parameters[name].default if name in parameters else None)
        if isinstance(scale, (int, float)):
            yield float(scale)
