"""The page with the results: tables in Markdown, a figure of the losses, and a sheet of samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusemble.evaluation.config import EvaluateConfig
from diffusemble.evaluation.figures import draw_losses, draw_sheet
from diffusemble.evaluation.prompt_match import published_accuracy
from diffusemble.evaluation.results import DrawnRow, LossRow, Results
from diffusemble.evaluation.scores import Scores
from diffusemble.evaluation.statistics import Interval

FIGURE, SHEET = "loss.png", "samples.webp"
SPLIT_TITLES = {
    "pair": "Known things in a style they were never seen in",
    "concept": "Things never seen in any style",
}


def write_report(results: Results, scores: Scores, config: EvaluateConfig, notes: Mapping[str, Any]) -> Path:
    """Write ``config.report`` with its figure and sheet; returns the page."""
    page = Path(config.report)
    pictures = page.with_suffix("")
    pictures.mkdir(parents=True, exist_ok=True)
    draw_losses(results, config, pictures / FIGURE)
    draw_sheet(scores, pictures / SHEET)
    page.write_text("\n\n".join(_sections(results, config, notes, pictures.name)) + "\n", encoding="utf-8")
    return page


# -- the page ----------------------------------------------------------------------------------------------------------


def _sections(results: Results, config: EvaluateConfig, notes: Mapping[str, Any], folder: str) -> Iterable[str]:
    yield "# Results"
    yield (
        f"Written by `diffusemble evaluate --protocol {config.protocol}`; how it measures is in "
        f"[evaluation.md](evaluation.md). Intervals are 95 %, paired by picture, over {config.bootstrap:,} bootstrap "
        f"samples that draw whole concepts. Every system gets the same captions, noise and seeds. The best single "
        f"expert, to which everything is compared, is the one with the lowest loss on held-out pairs: "
        f"**{results.best}**. Bold differences are clear of zero."
    )
    yield _verdict(results)
    yield "## Held-out denoising loss"
    yield (
        f"Mean squared error of the predicted noise in latents, without guidance, at {len(config.times)} timesteps "
        f"with {config.draws} {'noise' if config.draws == 1 else 'noises'} each, ×1000; lower is better. *Oracle* "
        f"takes for every picture the expert that is best on its topic, which no system is told."
    )
    for split, rows in results.losses.items():
        yield f"### {SPLIT_TITLES[split]} ({results.counts[split]} pictures)"
        yield _loss_table(rows)
    if results.versus["pair"]:
        yield "### The ensemble against each of the others"
        yield "Difference of the ensemble's loss ×1000 to the other's; below zero the ensemble is better."
        yield _versus_table(results)
    yield "### By timestep (pairs)"
    yield f"![Loss at each timestep relative to the best expert]({folder}/{FIGURE})"
    yield _time_table(results.losses["pair"], config)
    yield "### By topic (pairs)"
    yield _topic_table(results.losses["pair"])
    if results.weights:
        yield "## Whom the ensemble listens to"
        yield "Mean weight of each expert over all points, positions and timesteps, by what the picture shows."
        yield _weight_table(results)
    yield "## Drawn pictures"
    yield _drawing_notes(results, config)
    yield _drawn_table(results.drawn)
    yield f"![The same captions and seeds, drawn by every system]({folder}/{SHEET})"
    yield "## How good the scorer is"
    yield _scorer_table()
    yield "## Settings"
    yield _settings(config, notes)


def _verdict(results: Results) -> str:
    row = next((row for row in results.losses["pair"] if row.kind == "ensemble"), None)
    if row is None or row.gap is None:
        return "The ensemble is not among the systems measured."
    outcome = {True: "better", False: "worse"}[row.gap.value < 0] if row.gap.clear else "no clear difference"
    best = next(other for other in results.losses["pair"] if other.name == results.best)
    averages = [results.versus["pair"][r.name] for r in results.losses["pair"] if r.kind == "control"]
    better, worse = (sum(gap.clear and (gap.value < 0) is below for gap in averages) for below in (True, False))
    return (
        f"**In short:** on held-out pairs the ensemble's loss is {1000 * row.mean:.2f} against {1000 * best.mean:.2f} "
        f"of the best single expert: {_gap(row.gap, 1000, 2)}, {outcome}; it is lower on "
        f"{100 * row.wins:.0f} % of the pictures. Of the {len(averages)} untrained averages of the same experts it is "
        f"clearly better than {better} and clearly worse than {worse}."
    )


def _loss_table(rows: Sequence[LossRow]) -> str:
    body = [[r.title, f"{1000 * r.mean:.2f}", _gap(r.gap, 1000, 2), _percent(r.wins) if r.gap else "–"] for r in rows]
    return _table(["system", "loss ×1000", "difference to the best expert", "pictures won"], body)


def _versus_table(results: Results) -> str:
    titles = {row.name: row.title for row in results.losses["pair"]}
    body = [
        [titles[name], *(_gap(results.versus[split][name], 1000, 2) for split in results.versus)]
        for name in results.versus["pair"]
    ]
    return _table(["against", *(f"on {split}s" for split in results.versus)], body)


def _time_table(rows: Sequence[LossRow], config: EvaluateConfig) -> str:
    body = [[row.title, *(f"{1000 * value:.1f}" for value in row.by_time)] for row in rows]
    return _table(["loss ×1000 at t =", *map(str, config.times)], body)


def _topic_table(rows: Sequence[LossRow]) -> str:
    topics = list(rows[0].by_topic)
    body = [[row.title, *(f"{1000 * row.by_topic[topic]:.2f}" for topic in topics)] for row in rows]
    return _table(["loss ×1000 on", *topics], body)


def _weight_table(results: Results) -> str:
    body = [[topic, *(f"{weight:.3f}" for weight in weights)] for topic, weights in results.weights.items()]
    return _table(["pictures of", *(f"weight of *{name}*" for name in results.experts)], body)


def _drawing_notes(results: Results, config: EvaluateConfig) -> str:
    return (
        f"{config.images} pictures per system, {config.steps} steps of {config.scheduler.upper()}, guidance "
        f"{config.guidance:g}, captions of held-out pairs. *Prompt match (zoo)* is scale × cosine of a small scorer "
        f"trained here (it is not CLIP); *right thing* is how often the caption's concept comes first among "
        f"{results.candidates}. FID-like and KID ×1000 compare features of MobileNetV2 (M) and EfficientNet-Lite0 (E) "
        f"with those of {results.references} training pictures. The Fréchet distance is biased upwards at this number "
        f"of pictures, so it only ranks sets of equal size and has no interval; KID is unbiased, and its differences "
        f"have jackknife intervals."
    )


def _drawn_table(rows: Sequence[DrawnRow]) -> str:
    nets = list(rows[0].frechet)
    letters = [net[0].upper() for net in nets]
    head = ["system", "prompt match", "difference", "right thing", "difference, points"]
    head += [f"FID-like ({letter})" for letter in letters]
    head += [text for letter in letters for text in (f"KID ({letter})", "difference")]
    body = []
    for row in rows:
        cells = [row.title, f"{row.match:.2f}", _gap(row.match_gap, 1, 2), _percent(row.top_1)]
        cells += [_gap(row.top_1_gap, 100, 1), *(f"{row.frechet[net]:.1f}" for net in nets)]
        for net in nets:
            cells += [f"{1000 * row.kernel[net]:.1f}", _gap(row.kernel_gap[net], 1000, 1)]
        body.append(cells)
    return _table(head, body)


def _scorer_table() -> str:
    body = [
        [what, str(found["pictures"]), str(found["candidates"]), _percent(found["top_1"]), _percent(found["top_5"])]
        for what, found in published_accuracy().items()
    ]
    text = "Real pictures whose caption the scorer ranks first, or among the first five, in the picture's own style."
    return f"{text}\n\n{_table(['pictures', 'number', 'candidates', 'first', 'first five'], body)}"


def _settings(config: EvaluateConfig, notes: Mapping[str, Any]) -> str:
    lines = [f"- {key}: {_plain(value)}" for key, value in notes.items()]
    skip = {"report", "out", "data", "threads", "systems"}
    chosen = {key: value for key, value in config.model_dump(mode="json").items() if key not in skip}
    lines.append("- settings: " + ", ".join(f"{key} {_plain(value)}" for key, value in chosen.items()))
    lines.append(
        "- scores of every picture are kept under `out`; running the command again redraws this page from them"
    )
    return "\n".join(lines)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _gap(gap: Interval | None, scale: float, digits: int) -> str:
    if gap is None:
        return "–"
    value, low, high = (f"{scale * number:+.{digits}f}".replace("-", "−") for number in (gap.value, gap.low, gap.high))
    return f"**{value}** [{low}, {high}]" if gap.clear else f"{value} [{low}, {high}]"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    rows = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
