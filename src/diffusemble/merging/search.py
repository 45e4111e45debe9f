"""autoMBW: search the block weights of a merge by what the merged model draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from diffusemble.config.places import check_folder
from diffusemble.drawing import placement
from diffusemble.experts.expert import Expert
from diffusemble.experts.load import load_experts
from diffusemble.merging.blockwise import block_ratios, complement, parse_weights, slots
from diffusemble.merging.coordinates import LINES, Measure, Shares, Step, axes, by_expert, climb, most_trials
from diffusemble.merging.merged_expert import MergedExpert
from diffusemble.merging.objective import Objective, build_objective
from diffusemble.merging.recipe import check_recipe, write_recipe
from diffusemble.merging.search_config import SearchConfig
from diffusemble.merging.trials import Trial, TrialLog, mean
from diffusemble.samplers import use_sampler

LOG, RECIPE, PICTURE = "trials.jsonl", "recipe.yaml", "search.png"
NOT_IDENTITY = {"out", "merged"}

Tell = Callable[[float, str], None]


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        config: of the search.
        experts: names, in order.
        sources: where they were loaded from.
        shares: the best, by slot.
        trials: in the order of the search, the start first; what two steps ask for is one trial.
    """

    config: SearchConfig
    experts: tuple[str, ...]
    sources: tuple[str, ...]
    shares: Shares
    trials: tuple[Trial, ...]

    @property
    def weights(self) -> tuple[Mapping[str, float], ...]:
        """Block weights, one mapping from slot to share per expert."""
        return tuple(by_expert(self.shares))

    @property
    def score(self) -> float:
        """The best score."""
        return max(trial.score for trial in self.trials)

    def save(self) -> tuple[Path, Path]:
        """Write the recipe and the picture of the search beside its log.

        Raises:
            ModuleNotFoundError: matplotlib, which draws the picture, is not installed; the recipe is there.
        """
        from diffusemble.merging.search_figure import draw_search

        folder = Path(self.config.out)
        write_recipe(folder / RECIPE, self.sources, self.weights, self.config.merged)
        draw_search(self.experts, self.shares, self.trials, folder / PICTURE)
        return folder / RECIPE, folder / PICTURE


def search(
    config: SearchConfig, tell: Tell = lambda share, what: None, experts: Sequence[Expert] | None = None
) -> Found:
    """Find block weights; what ``config.out`` has a log of is not drawn again.

    Args:
        config: see ``SearchConfig``.
        tell: told how far it is, 0 to 1, and the best score.
        experts: loaded ones, instead of those that the configuration names.

    Raises:
        ValueError: fewer than two experts, or ones that cannot be merged by blocks; a scorer that cannot be used; or
            a folder with the log of another search, or that cannot be written to.
        FileNotFoundError: the scorer's weights, or the held-out pictures, are missing.
    """
    check_folder(config.out, "out")
    experts = _load(config) if experts is None else experts
    if len(experts) < 2:
        raise ValueError(f"A search merges two experts or more; got {len(experts)}. Give more experts.")
    merged = MergedExpert(experts)
    start = _start(config, len(experts), merged.family)
    order = axes(_searched(merged, experts), len(experts), config.pairs)
    objective = build_objective(config, experts[0].components.get("vae"))
    log = TrialLog(Path(config.out) / LOG, _identity(config, experts))
    bench = _Bench(
        merged, objective, log, config, _telling(tell, most_trials(config.search, config.rounds, order, config.passes))
    )

    def line(measure: Measure) -> None:
        LINES[config.search](measure, config.rounds)

    shares, score = climb(start, order, line, bench.evaluate, config.passes)
    tell(1.0, f"best score {score:.4f}")
    names, sources = (expert.name for expert in experts), (str(expert.source) for expert in experts)
    return Found(config, tuple(names), tuple(sources), shares, tuple(bench.trials.values()))


class _Bench:
    """Scores shares: from the log if they were tried before, else by the merged model."""

    def __init__(
        self,
        merged: MergedExpert,
        objective: Objective,
        log: TrialLog,
        config: SearchConfig,
        tell: Callable[[float], None],
    ) -> None:
        self.merged, self.objective, self.log, self.tell = merged, objective, log, tell
        self.pipeline = merged.pipeline()
        use_sampler(self.pipeline, config.scheduler)
        self.pipeline.set_progress_bar_config(disable=True)
        self.trials: dict[tuple[tuple[float, ...], ...], Trial] = {}

    def evaluate(self, shares: Shares, step: Step) -> float:
        """Score of shares; higher is better."""
        scores = self.log.find(shares)
        if scores is None:
            self.merged.set(list(by_expert(shares)))
            with torch.no_grad():
                scores = tuple(self.objective(self.pipeline).tolist())
            self.log.add(shares, step, scores)
        trial = self.trials.setdefault(tuple(shares.values()), Trial(step, scores, mean(scores)))
        self.tell(max(one.score for one in self.trials.values()))
        return trial.score


def _telling(tell: Tell, most: int) -> Callable[[float], None]:
    counter: Iterator[int] = iter(range(most))
    return lambda best: tell(min(1.0, next(counter, most) / most), f"best score {best:.4f}")


def _load(config: SearchConfig) -> tuple[Expert, ...]:
    device, dtype = placement(config.device, config.dtype)
    experts = load_experts(config.experts, dtype=dtype, device=device, base=config.base)
    check_recipe([str(expert.source) for expert in experts], config.merged, "the key merged")
    return experts


def _searched(merged: MergedExpert, experts: Sequence[Expert]) -> tuple[str, ...]:
    found = merged.differing()
    if not found:
        names = ", ".join(expert.name for expert in experts)
        raise ValueError(
            f"A search needs experts that differ, but all tensors of {names} are equal. Give other experts."
        )
    return found


def _start(config: SearchConfig, count: int, family: str) -> Shares:
    names = slots(family)
    if config.start is None:
        return dict.fromkeys(names, (1 / count,) * count)
    given = config.start
    several = isinstance(given, (list, tuple)) and not all(isinstance(one, (int, float)) for one in given)
    sets = [parse_weights(one, family) for one in (given if several else [given])]
    if len(sets) == 1 and count == 2:
        sets = [complement(sets[0]), sets[0]]
    if len(sets) != count:
        raise ValueError(
            f"start is one set of block weights per expert; got {len(sets)} for {count} experts. Give {count} presets "
            f"or lists of numbers."
        )
    return {slot: block_ratios(sets, slot) for slot in names}


def _identity(config: SearchConfig, experts: Sequence[Expert]) -> dict[str, Any]:
    """Everything the scores depend on."""
    found = {
        **config.model_dump(mode="json", exclude=NOT_IDENTITY),
        "experts": {expert.name: dict(expert.files) for expert in experts},
    }
    if config.held_out is not None:
        rows = Path(config.held_out.data) / "metadata.jsonl"
        found["pictures"] = sha256(rows.read_bytes()).hexdigest()[:16] if rows.is_file() else None
    return found
