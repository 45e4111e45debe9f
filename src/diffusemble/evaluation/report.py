"""The page of the zoo's protocol: tables, a figure of the losses, and a sheet of samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusemble.evaluation.config import EvaluateConfig
from diffusemble.evaluation.figures import draw_losses, draw_sheet
from diffusemble.evaluation.page import Section, plain, settings_list, write_page
from diffusemble.evaluation.prompt_match import published_accuracy
from diffusemble.evaluation.results import Results
from diffusemble.evaluation.rows import DrawnRow, LossRow
from diffusemble.evaluation.stored import MATCH, RIGHT, Scores
from diffusemble.evaluation.tables import Body, Column, Head, Table

FIGURE, SHEET = "loss.png", "samples.webp"
SPLIT_TITLES = {
    "pair": "Known things in a style they were never seen in",
    "concept": "Things never seen in any style",
}
LOSS = Column("loss ×1000", 1000)
FORMATS = {MATCH: (1.0, 2, ""), RIGHT: (100.0, 1, " %")}


def write_report(results: Results, scores: Scores, config: EvaluateConfig, notes: Mapping[str, Any]) -> Path:
    """Write ``config.report`` with its figure, sheet and tables beside it; returns the page."""
    page = Path(config.report)
    pictures = page.with_suffix("")
    pictures.mkdir(parents=True, exist_ok=True)
    draw_losses(results, config, pictures / FIGURE)
    draw_sheet(scores, pictures / SHEET)
    return write_page(page, sections(results, config, notes, pictures.name))


def sections(results: Results, config: EvaluateConfig, notes: Mapping[str, Any], folder: str) -> Iterable[Section]:
    """The page from top to bottom; ``folder`` is where its pictures are."""
    yield f"# Results: {(config.ensemble or 'experts').removeprefix('zoo:')}"
    yield (
        f"Written by `diffusemble evaluate --protocol {config.protocol}`; how it measures is in "
        f"`docs/evaluation.md`. Intervals are 95 %, paired by picture, over {config.bootstrap:,} bootstrap "
        f"samples that draw whole concepts. Every system gets the same captions, noise and seeds. All are compared "
        f"with **{results.best}**, the single expert with the lowest loss on held-out pairs. Bold differences are "
        f"clear of zero. Every table lies as Markdown, LaTeX and CSV in `{folder}/tables`."
    )
    yield verdict(results)
    yield from _loss_sections(results, config, folder)
    if results.weights:
        yield "## Whom the ensemble listens to"
        yield "Mean weight of each expert over all points, positions and timesteps, by what the picture shows."
        yield weight_table(results)
    yield from _drawn_sections(results, config, folder)
    yield "## How good the scorer is"
    yield "Real pictures whose caption the scorer ranks first, or among the first five, in the picture's own style."
    yield scorer_table()
    yield "## Settings"
    yield settings_list(config, notes)


def verdict(results: Results) -> str:
    """What the main ensemble's loss says, in two sentences."""
    row = next((row for row in results.losses["pair"] if row.name == results.main), None)
    if row is None or row.gap is None:
        return "The ensemble is not among the systems measured."
    outcome = {True: "better", False: "worse"}[row.gap.value < 0] if row.gap.clear else "no clear difference"
    best = next(other for other in results.losses["pair"] if other.name == results.best)
    controls = [results.versus["pair"][r.name] for r in results.losses["pair"] if r.kind == "control"]
    better, worse = (sum(gap.clear and (gap.value < 0) is below for gap in controls) for below in (True, False))
    return (
        f"**In short:** on held-out pairs the ensemble's loss is {1000 * row.mean:.2f} against {1000 * best.mean:.2f} "
        f"of the best single expert: {plain(row.gap, 1000)}, {outcome}; it is lower on "
        f"{100 * row.wins:.0f} % of the pictures. Of the {len(controls)} controls made of the same experts it is "
        f"clearly better than {better} and clearly worse than {worse}."
    )


def _loss_sections(results: Results, config: EvaluateConfig, folder: str) -> Iterable[Section]:
    yield "## Held-out denoising loss"
    yield (
        f"Mean squared error of the predicted noise in latents, without guidance, at {len(config.times)} timesteps "
        f"with {config.draws} {'noise' if config.draws == 1 else 'noises'} each, ×1000; lower is better. *Oracle* "
        f"takes for every picture the expert on whose ground it is, which no system is told."
    )
    for split, rows in results.losses.items():
        yield f"### {SPLIT_TITLES[split]} ({results.counts[split]} pictures)"
        yield loss_table(rows, split)
    if results.versus["pair"]:
        yield "### The ensemble against each of the others"
        yield "Difference of the ensemble's loss ×1000 to the other's; below zero the ensemble is better."
        yield versus_table(results)
    yield "### By timestep (pairs)"
    yield f"![Loss at each timestep relative to the best expert]({folder}/{FIGURE})"
    yield time_table(results.losses["pair"], config)
    yield "### By kind of picture (pairs)"
    yield kind_table(results.losses["pair"])


def loss_table(rows: Sequence[LossRow], split: str) -> Table:
    """Loss, difference, wins, and the pictures with the smallest and largest loss."""
    head: Head = [
        *("system", LOSS, Column("difference to the best expert", 1000), Column("pictures won", 100, 0, " %")),
        *(Column("smallest", 1000), Column("largest", 1000)),
    ]
    body: Body = [[r.title, r.mean, r.gap, r.wins if r.gap else None, r.score.least, r.score.most] for r in rows]
    return Table(f"loss-{split}", f"Held-out loss: {SPLIT_TITLES[split]}", head, body)


def versus_table(results: Results) -> Table:
    """The main ensemble's loss against each of the others."""
    titles = {row.name: row.title for row in results.losses["pair"]}
    head: Head = ["against", *(Column(f"on {split}s", 1000) for split in results.versus)]
    body: Body = [[titles[name], *(own[name] for own in results.versus.values())] for name in results.versus["pair"]]
    return Table("loss-versus", "The ensemble's held-out loss against each of the others", head, body)


def time_table(rows: Sequence[LossRow], config: EvaluateConfig) -> Table:
    """Loss at each timestep."""
    head: Head = ["loss ×1000 at t =", *(Column(str(time), 1000, 1) for time in config.times)]
    return Table("loss-by-time", "Held-out loss by timestep", head, [[row.title, *row.by_time] for row in rows])


def kind_table(rows: Sequence[LossRow]) -> Table:
    """Loss for each kind of picture."""
    head: Head = ["loss ×1000 on", *(Column(kind, 1000) for kind in rows[0].by_kind)]
    return Table(
        "loss-by-kind", "Held-out loss by kind of picture", head, [[r.title, *r.by_kind.values()] for r in rows]
    )


def weight_table(results: Results) -> Table:
    """The ensemble's mean weights."""
    head: Head = ["pictures of", *(Column(f"weight of *{name}*", digits=3) for name in results.experts)]
    body: Body = [[kind, *weights] for kind, weights in results.weights.items()]
    return Table("weights", "Mean weight of each expert", head, body)


def _drawn_sections(results: Results, config: EvaluateConfig, folder: str) -> Iterable[Section]:
    yield "## Drawn pictures"
    yield (
        f"{config.images} pictures per system, {config.steps} steps of {config.scheduler.upper()}, guidance "
        f"{config.guidance:g}, captions of held-out pairs. *Prompt match (zoo)* is scale × cosine of a small scorer "
        f"trained here (it is not CLIP); *right thing* is how often the caption's concept comes first among "
        f"{results.candidates}; further columns have the names of their metrics. Higher is better."
    )
    yield score_table(results.drawn)
    yield "### Spread of the scores"
    yield "Over pictures: the smallest, the mean, the largest."
    yield spread_table(results.drawn)
    yield "### Sets of pictures"
    yield (
        f"FID-like and KID ×1000 compare features of MobileNetV2 (M) and EfficientNet-Lite0 (E) with those of "
        f"{results.references} training pictures; lower is better. The Fréchet distance is biased upwards at this "
        f"number of pictures, so it only ranks sets of equal size and has no interval; KID is unbiased, and its "
        f"differences have jackknife intervals over concepts."
    )
    yield set_table(results.drawn)
    if results.drawn_versus:
        yield "### The ensemble's pictures against each of the others"
        yield "Difference of the ensemble's score to the other's: above zero it is better, for KID below zero."
        yield drawn_versus_table(results)
    yield f"![The same captions and seeds, drawn by every system]({folder}/{SHEET})"


def _column(title: str, score: str) -> Column:
    scale, digits, unit = FORMATS.get(score, (1.0, 3, ""))
    return Column(title, scale, digits, unit)


def score_table(rows: Sequence[DrawnRow]) -> Table:
    """Mean, difference and wins of every score."""
    head: list[str | Column] = ["system"]
    for name in rows[0].scores:
        gap = _column("difference", name)
        head += [_column(name, name), Column(f"difference in {name}", gap.scale, gap.digits)]
        head += [Column(f"{name}: pictures won", 100, 0, " %")]
    body: Body = [
        [r.title, *(cell for s in r.scores.values() for cell in (s.mean, s.gap, s.wins if s.gap else None))]
        for r in rows
    ]
    return Table("drawn-scores", "Scores of drawn pictures", head, body)


def spread_table(rows: Sequence[DrawnRow]) -> Table:
    """Smallest, mean and largest of every score."""
    head: list[str | Column] = ["system"]
    for name in rows[0].scores:
        head += [_column(f"{name}: {what}", name) for what in ("smallest", "mean", "largest")]
    body: Body = [[r.title, *(cell for s in r.scores.values() for cell in (s.least, s.mean, s.most))] for r in rows]
    return Table("drawn-spread", "Smallest, mean and largest score of drawn pictures", head, body)


def set_table(rows: Sequence[DrawnRow]) -> Table:
    """Distances of sets."""
    nets = list(rows[0].frechet)
    head: list[str | Column] = ["system", *(Column(f"FID-like ({net[0].upper()})", digits=1) for net in nets)]
    for net in nets:
        letter = net[0].upper()
        head += [Column(f"KID ({letter})", 1000, 1), Column(f"difference in KID ({letter})", 1000, 1)]
    body: Body = [
        [r.title, *r.frechet.values(), *(cell for net in nets for cell in (r.kernel[net], r.kernel_gap[net]))]
        for r in rows
    ]
    return Table("drawn-sets", "Distances of sets of drawn pictures", head, body)


def drawn_versus_table(results: Results) -> Table:
    """The main ensemble's pictures against each of the others."""
    titles = {row.name: row.title for row in results.drawn}
    head: list[str | Column] = ["against"]
    for name in results.drawn_versus:
        is_set = name in results.drawn[0].frechet
        head.append(Column(f"KID ({name[0].upper()}) ×1000", 1000, 1) if is_set else _column(name, name))
    first = next(iter(results.drawn_versus.values()))
    body: Body = [[titles[name], *(found[name] for found in results.drawn_versus.values())] for name in first]
    return Table("drawn-versus", "The ensemble's pictures against each of the others", head, body)


def scorer_table() -> Table:
    """How good the prompt match is on real pictures."""
    head: Head = ["pictures", "number", "candidates", Column("first", 100, 0, " %"), Column("first five", 100, 0, " %")]
    keys = ("pictures", "candidates", "top_1", "top_5")
    body: Body = [[what, *(found[key] for key in keys)] for what, found in published_accuracy().items()]
    return Table("scorer", "Accuracy of the prompt match on real pictures", head, body)
