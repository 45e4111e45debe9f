"""Under pytest, the shapes and types in the signatures of the mathematics layer are checked on every call."""

from __future__ import annotations

from jaxtyping import install_import_hook

CHECKED = (
    "diffusemble.aggregators",
    "diffusemble.fusion",
    "diffusemble.latent.amdm",
    "diffusemble.latent.predictions",
    "diffusemble.latent.superdiff",
    "diffusemble.merging.methods",
    "diffusemble.parametrisation",
    "diffusemble.training.levels",
    "diffusemble.training.objective",
    "diffusemble.training.weighting",
)

install_import_hook(CHECKED, "type_checks.checked")
