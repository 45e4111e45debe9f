"""A pickled checkpoint becomes a safetensors file, without running what it may hold.

``python -m diffusemble.controls.convert interact-diffusion-v1-2.pth interact-diffusion-v1-2.safetensors``
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from diffusemble.controls.storage import read_pickled, write_control


def convert(source: str | Path, target: str | Path) -> int:
    """Copy every tensor of a pickled checkpoint into a safetensors file; nested names are joined by dots.

    Args:
        source: ``.pth``, ``.ckpt``, ``.bin`` or ``.pt``.
        target: the ``.safetensors`` file to write.

    Returns:
        The number of tensors.

    Raises:
        ValueError: the file is not there, holds more than tensors and plain values, or no tensors.
    """
    weights = read_pickled(source)
    if not weights:
        raise ValueError(f"{source} holds no tensors. Give the checkpoint with the weights.")
    # Tensors that share memory cannot be stored: each gets its own.
    write_control({key: tensor.clone() for key, tensor in weights.items()}, target, {})
    return len(weights)


def main(arguments: Sequence[str]) -> int:
    """The command: two files."""
    if len(arguments) != 2:
        print("usage: python -m diffusemble.controls.convert CHECKPOINT.pth WEIGHTS.safetensors", file=sys.stderr)
        return 2
    try:
        count = convert(*arguments)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{arguments[1]}: {count} tensors")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
