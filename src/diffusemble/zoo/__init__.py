"""The zoo: small real text-to-image experts that ship with the package.

`folder("animals")` is a standard diffusers folder; docs/zoo.md is the model card.
"""

from diffusemble.zoo.experts import folder, groups, names

__all__ = ["folder", "groups", "names"]
