"""In which terms an error is taken: factors of the level of noise alone, so that target and weighting are one choice.

What a denoiser predicts says x, ε and the velocity together, because it knows x_t = α x + σ ε: an error Δx of the
picture is the error Δε = -(α/σ) Δx of the noise, and of the velocity (v of diffusion, u of flow matching) it is -Δx/σ,
where α² + σ² = 1 for v and α + σ = 1 for u. So the squares are multiples of each other:

    ‖Δε‖² = α² ‖Δvelocity‖²        ‖Δx‖² = σ² ‖Δvelocity‖²        signal-to-noise ratio s = α² / σ²
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from diffusemble.training.objective import Diffusion, Level

ErrorTerms = Literal["prediction", "noise", "velocity", "image", "min-snr", "soft-min-snr", "debiased", "cosmap"]


def error_weights(error: ErrorTerms, prediction_type: str, level: Level, gamma: float = 5.0) -> Float[Tensor, " b"]:
    """What the squared error of the prediction is multiplied with to be an error in other terms.

    Args:
        error: one of

            - ``"prediction"``: as the denoiser predicts, 1;
            - ``"noise"``: ‖Δε‖²; ``"velocity"``: ‖Δv‖² or ‖Δu‖²; ``"image"``: ‖Δx‖²;
            - ``"min-snr"``: min(s, γ) ‖Δx‖² (Hang et al. 2023, arXiv 2303.09556);
            - ``"soft-min-snr"``: s γ / (s + γ) ‖Δx‖² (Crowson et al. 2024, arXiv 2401.11605);
            - ``"debiased"``: ‖Δε‖² / √s (Yu et al. 2023, arXiv 2310.08442);
            - ``"cosmap"``: 2 / (π (α² + σ²)) ‖Δu‖² (Esser et al. 2024, arXiv 2403.03206, section 3.1), for flow alone.
        prediction_type: what the denoiser predicts (``objective.DIFFUSION``, ``objective.FLOW``).
        level: of every sample.
        gamma: γ.
    """
    signal, noise = level.alpha.square(), level.sigma.square()
    if error == "prediction":
        return torch.ones_like(signal)
    of_velocity = {
        "noise": lambda: signal,
        "velocity": lambda: torch.ones_like(signal),
        "image": lambda: noise,
        "min-snr": lambda: torch.minimum(signal, gamma * noise),
        "soft-min-snr": lambda: gamma * signal * noise / (signal + gamma * noise),
        "debiased": lambda: level.alpha * level.sigma,
        "cosmap": lambda: 2 / (math.pi * (signal + noise)),
    }[error]()
    return of_velocity / {"epsilon": signal, "sample": noise}.get(prediction_type, torch.ones_like(signal))


def check_error(error: ErrorTerms, diffusion: Diffusion, timesteps: range) -> None:
    """Make sure that the experts' error at ``timesteps`` can be taken in these terms.

    Raises:
        ValueError: it cannot; the message says why, and what would work.
    """
    if error == "cosmap" and not diffusion.flows:
        raise ValueError(
            f"objective.error 'cosmap' weights the levels of flow matching, and these experts predict "
            f"{diffusion.prediction_type!r} of a diffusion, where it would weight all alike. Choose 'velocity' or "
            f"'min-snr'."
        )
    silent = diffusion.prediction_type == "epsilon" and bool(
        (diffusion.alpha[timesteps.start : timesteps.stop] == 0).any()
    )
    if silent and error not in ("prediction", "noise"):
        raise ValueError(
            f"The last timestep of these experts is pure noise (alpha 0), where predicted noise says nothing of the "
            f"picture, so its error cannot be taken in terms of objective.error {error!r}. Choose 'prediction', or end "
            f"before it: timesteps: [0, {len(diffusion) - 2}]."
        )
