"""The zoo: small real text-to-image experts that ship with the package.

`folder("animals")` is a standard diffusers folder; docs/zoo.md is the model card.
"""

from diffusemble.zoo.controls import control_file, image_encoder_folder
from diffusemble.zoo.ensembles import trained_ensemble
from diffusemble.zoo.experts import SCENES, fingerprint, folder, groups, names, on_ground

__all__ = [
    "SCENES",
    "control_file",
    "fingerprint",
    "folder",
    "groups",
    "image_encoder_folder",
    "names",
    "on_ground",
    "trained_ensemble",
]
