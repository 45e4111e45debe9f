"""Bytes of tensors that are alive at once, counted while something runs; on the meta device, without any memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """While it is active, counts the memory of every tensor that is made, until the tensor is forgotten.

    Attributes:
        bytes: alive now.
        peak: most that were alive at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run ``func`` and count what it makes; what it was given was there before."""
        for tensor in tree_leaves((args, kwargs)):
            self._see(tensor, count=False)
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            self._see(tensor, count=True)
        return result

    def _see(self, tensor: Any, count: bool) -> None:
        if not isinstance(tensor, Tensor):
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes() if count else 0
        if key in self._known:
            return

        def forget(_: Any) -> None:
            del self._known[key]
            self.bytes -= size

        self._known[key] = weakref.ref(storage, forget)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)


class FusedAttention(TorchFunctionMode):
    """Attention as fused kernels do it: no map of queries and keys is kept, also not for gradients. The meta device has
    no such kernel.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Answer attention by its result alone."""
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        given = dict(zip(("query", "key", "value"), args, strict=False)) | dict(kwargs or {})
        return fused_attention(given["query"], given["key"], given["value"])


def fused_attention(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
    """What attention makes and what it keeps for gradients, without its numbers."""
    result: Tensor = _Attention.apply(query, key, value)
    return result


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        result = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, result)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


def peak_bytes(call: Callable[[], Any], gradients: bool = False) -> int:
    """Most bytes of tensors that are alive at once during ``call``, which must run on the meta device."""
    with torch.set_grad_enabled(gradients), FusedAttention(), LiveBytes() as live:
        call()
    return live.peak
