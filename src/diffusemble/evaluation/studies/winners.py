"""Which expert errs least, where and when; and whether the aggregator gives it the weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffusemble.aggregators.recording import record_attention
from diffusemble.evaluation.heldout import HeldOut, Predict, trials
from diffusemble.evaluation.statistics import paired_bootstrap
from diffusemble.evaluation.studies.config import WinnersConfig
from diffusemble.evaluation.studies.digest import digest_of
from diffusemble.evaluation.studies.findings import Findings, in_words
from diffusemble.evaluation.studies.lab import Array, Lab
from diffusemble.evaluation.studies.plots import heat, lines
from diffusemble.evaluation.systems import LEARNED, System, build_systems, select
from diffusemble.evaluation.tables import Cell, Table
from diffusemble.training.objective import Diffusion

LAST = "the last point"


@dataclass(frozen=True)
class Field:
    """For n pictures, t timesteps, e experts and every position: errors and weights ``[n t e h w]``."""

    errors: Array
    weights: Array

    @property
    def wins(self) -> Array:
        """1 for the expert with the least error, 0 for the others."""
        return np.asarray(self.errors.argmin(axis=2)[:, :, None] == np.arange(self.errors.shape[2])[:, None, None])

    @property
    def agreement(self) -> Array:
        """Share of timesteps and positions where the largest weight is the winner's, for every picture ``[n]``."""
        return np.asarray((self.errors.argmin(axis=2) == self.weights.argmax(axis=2)).mean(axis=(1, 2, 3)))


def run(config: WinnersConfig, lab: Lab) -> Findings:
    """Shares of wins by position, timestep and kind of prompt, beside the weights at the last point."""
    systems = build_systems(lab.ensemble, guidance=config.guidance)
    experts = [system for system in systems if system.kind == "expert"]
    field = measure(experts, select(systems, (LEARNED,))[0], lab)
    names = [system.name for system in experts]
    wins, weights = field.wins, field.weights
    overall = wins.mean(axis=(0, 1, 3, 4))
    often = names[int(overall.argmax())]
    constant = wins[:, :, overall.argmax()].mean(axis=(1, 2, 3))
    groups = [row.concept for row in lab.rows]
    lead = paired_bootstrap(100 * (field.agreement - constant), groups, config.bootstrap, config.seed)
    sentence = (
        f"The expert with the least error is {_shares(names, overall)}. At {LAST} the ensemble gives the largest "
        f"weight to it at {100 * field.agreement.mean():.0f} % of all positions and timesteps; always saying {often} "
        f"would be right at {100 * constant.mean():.0f} % (difference in points: {in_words(lead, 1)}; chance is "
        f"{100 / len(names):.0f} %)."
    )
    times = {"by timestep": [(f"t = {time}", wins[:, at], weights[:, at]) for at, time in enumerate(config.times)]}
    kinds = {"by kind of prompt": list(_by_kind(lab, wins, weights))}
    tables = [_table(title, parts, names) for title, parts in {**times, **kinds}.items()]
    figures = {
        "where-they-win.png": _maps(names, wins, "wins"),
        "where-they-weigh.png": _maps(names, weights, "weight"),
        "when.png": _over_time(names, wins, weights, config),
    }
    return Findings(sentence, tables, figures, {"held-out pictures": len(lab.rows), "noises each": config.draws})


def measure(experts: Sequence[System], ensemble: System, lab: Lab) -> Field:
    """Errors of the experts and weights of the ensemble; kept."""
    config = lab.config
    settings = [list(config.times), config.draws, config.seed, [row.file_name for row in lab.rows]]

    def errors(system: System) -> Array:
        given = lab.held(system), system.diffusion, config.times, config.draws, config.seed
        return lab.keep(
            f"errors/{system.name}",
            [digest_of(system.pipeline.unet), digest_of(system.pipeline.text_encoder), settings],
            lambda: {"errors": error_maps(system.predict, *given).numpy()},
        )["errors"]

    found = []
    for number, system in enumerate(experts):
        lab.tell(number / (len(experts) + len(experts)), f"errors of {system.title}")
        found.append(errors(system))
    lab.tell(0.5, "weights")
    return Field(np.stack(found, axis=2), weight_maps(ensemble, lab, settings))


@torch.no_grad()
def error_maps(
    predict: Predict, held: HeldOut, diffusion: Diffusion, times: Sequence[int], draws: int, seed: int
) -> Float[Tensor, "n t h w"]:
    """Squared error of the predicted noise, mean over channels and draws, for every position."""
    n, _, height, width = held.latents.shape
    found = torch.zeros(n, len(times), height, width)
    for trial in trials(held, diffusion, times, draws, seed):
        error = (predict(trial.noisy, trial.times, held.prompts).float() - trial.target.float()).square()
        found[:, trial.column] += error.mean(dim=1).cpu() / draws
    return found


def weight_maps(system: System, lab: Lab, settings: Any) -> Array:
    """Weights at the last point, mean over draws, ``[n t e h w]``; kept."""
    config, held = lab.config, lab.held(system)

    def make() -> dict[str, Array]:
        with record_attention(lab.ensemble) as maps:
            error_maps(system.predict, held, system.diffusion, config.times, config.draws, config.seed)
        calls = torch.stack(maps[len(maps) - 1])
        return {"weights": calls.unflatten(0, (len(config.times), config.draws)).mean(dim=1).transpose(0, 1).numpy()}

    mark = [digest_of(system.pipeline.unet), digest_of(system.pipeline.text_encoder), settings]
    return lab.keep(f"weight-maps/{system.name}", mark, make)["weights"]


def _by_kind(lab: Lab, wins: Array, weights: Array) -> Sequence[tuple[str, Array, Array]]:
    kinds = [("topic", row.topic) for row in lab.rows] + [("style", row.style) for row in lab.rows]
    found = []
    for column, value in dict.fromkeys(sorted(kinds, reverse=True)):
        own = np.array([getattr(row, column) == value for row in lab.rows])
        found.append((f"{column} {value}", wins[own], weights[own]))
    return found


def _table(title: str, parts: Sequence[tuple[str, Array, Array]], names: Sequence[str]) -> Table:
    rows: list[list[Cell]] = []
    for label, wins, weights in parts:
        shares = [100 * wins.mean(axis=0).reshape(-1, *wins.shape[-3:]).mean(axis=(0, 2, 3))]
        shares.append(100 * weights.mean(axis=0).reshape(-1, *weights.shape[-3:]).mean(axis=(0, 2, 3)))
        rows.append([label, *(float(value) for pair in zip(*shares, strict=True) for value in pair)])
    head = ["", *(text for name in names for text in (f"*{name}* wins, %", f"weight of *{name}*, %"))]
    return Table(title.replace(" ", "-"), f"Wins over positions and weight at {LAST}, {title}.", head, rows, digits=0)


def _shares(names: Sequence[str], shares: Array) -> str:
    return ", ".join(f"{name} at {100 * share:.0f} %" for name, share in zip(names, shares, strict=True))


def _maps(names: Sequence[str], values: Array, what: str) -> Any:
    panels = {f"{name}: {what}": values[:, :, at].mean(axis=(0, 1)) for at, name in enumerate(names)}
    span = min(panel.min() for panel in panels.values()), max(panel.max() for panel in panels.values())
    return heat(panels, ("column of the latents", "row"), span)


def _over_time(names: Sequence[str], wins: Array, weights: Array, config: WinnersConfig) -> Any:
    def series(values: Array, what: str) -> dict[str, list[float]]:
        steps = range(len(config.times))
        return {
            f"{name}: {what}": [float(100 * values[:, step, at].mean()) for step in steps]
            for at, name in enumerate(names)
        }

    titles = "timestep (1000 is pure noise)", f"wins, and weight at {LAST}, %"
    return lines(series(wins, "wins"), config.times, titles, dashed=series(weights, "weight"))
