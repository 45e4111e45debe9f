"""The typed schema of what training minimises, and of the levels of noise it does so at."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from diffusemble.config.schema import Schema


class LevelsConfig(Schema):
    """How often each level of noise is trained (``levels.probabilities``).

    Attributes:
        density: over the place in the schedule, or σ of flow matching: ``uniform``, ``logit-normal``, ``mode`` or
            ``cosmap`` (SD3, arXiv 2403.03206, section 3.1); by default ``logit-normal`` for flow matching and
            ``uniform`` for everything else.
        mean: m of ``logit-normal``; above 0, much noise comes more often.
        spread: s of ``logit-normal``.
        scale: s of ``mode``; above 0, the middle comes more often, below 0 the ends.
        shift: how far flow matching leans to much noise; as the experts' own schedule by default, for pictures of
            this size; 1 for not at all.
    """

    density: Literal["uniform", "logit-normal", "mode", "cosmap"] | None = None
    mean: float = 0.0
    spread: float = Field(default=1.0, gt=0)
    scale: float = Field(default=1.29, ge=-1, le=1.75)  # beyond, t would not fall with u
    shift: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _options_have_a_density(self) -> LevelsConfig:
        wanted = {"mean": (None, "logit-normal"), "spread": (None, "logit-normal"), "scale": ("mode",)}
        for name in sorted(self.model_fields_set & wanted.keys()):
            default = type(self).model_fields[name].default
            if getattr(self, name) != default and self.density not in wanted[name]:
                raise ValueError(
                    f"levels.{name} belongs to the density {wanted[name][-1]!r}; got density "
                    f"{self.density or 'of the experts (none is named)'!r}. Leave {name} out, or name that density."
                )
        return self


class ObjectiveConfig(Schema):
    """What training minimises; the defaults are those of AFA: the plain error of what the experts predict.

    Attributes:
        error: in which terms the squared error is taken (``weighting.error_weights``): ``prediction`` as the experts
            predict, ``noise``, ``velocity``, ``image`` (the clean latents), ``min-snr``, ``soft-min-snr``,
            ``debiased``, or ``cosmap`` for flow matching.
        gamma: largest signal-to-noise ratio that ``min-snr`` and ``soft-min-snr`` count.
        entropy: weight of the maps' missing entropy, 0 where experts share equally and 1 where one has everything.
        pull: weight of the Kullback-Leibler divergence of the equal share from the maps; grows without bound where an
            expert is left out.
        balance: weight of the inequality of the experts' mean shares over a batch, from 0 to 1; a position may belong
            to one expert.
    """

    error: Literal["prediction", "noise", "velocity", "image", "min-snr", "soft-min-snr", "debiased", "cosmap"] = (
        "prediction"
    )
    gamma: float = Field(default=5.0, gt=0)
    entropy: float = Field(default=0.0, ge=0)
    pull: float = Field(default=0.0, ge=0)
    balance: float = Field(default=0.0, ge=0)
