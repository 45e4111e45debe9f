"""The page of a protocol of drawn pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from diffusemble.evaluation.config import PicturesConfig
from diffusemble.evaluation.figures import draw_gaps, save_sheet, spread, system_columns
from diffusemble.evaluation.gallery import Gallery
from diffusemble.evaluation.page import Section, settings_list, write_page
from diffusemble.evaluation.picture_results import MetricResults, PictureResults
from diffusemble.evaluation.picture_scores import PictureScores
from diffusemble.evaluation.protocols import protocol
from diffusemble.evaluation.tables import Body, Column, Head, Table
from diffusemble.registry import METRICS

FIGURE, SHEET, SHEET_ROWS, SIDE = "differences.png", "samples.webp", 6, 160


def write_picture_report(
    results: PictureResults, scores: PictureScores, config: PicturesConfig, notes: Mapping[str, Any]
) -> Path:
    """Write ``config.report`` with its figure, sheet and tables beside it; returns the page."""
    page = Path(config.report)
    pictures = page.with_suffix("")
    pictures.mkdir(parents=True, exist_ok=True)
    titles = {name: title for name, title, kind in results.systems if kind != "inside"}
    gaps = {
        one.metric: [(titles[name], s.gap) for name, s in one.scores.items() if s.gap and name in titles]
        for one in results.metrics
    }
    gaps = {metric: own for metric, own in gaps.items() if own}
    if gaps:
        draw_gaps(gaps, pictures / FIGURE)
    has_sheet = _draw_samples(scores, config, pictures / SHEET)
    shown = {FIGURE: bool(gaps), SHEET: has_sheet}
    return write_page(page, sections(results, config, notes, {name for name, there in shown.items() if there}))


def sections(
    results: PictureResults, config: PicturesConfig, notes: Mapping[str, Any], pictures: set[str]
) -> Iterable[Section]:
    """The page from top to bottom; ``pictures`` are the files that lie in its folder."""
    about, folder = protocol(config.protocol), Path(config.report).stem
    yield f"# {about.title}"
    yield about.about
    yield (
        f"Written by `diffusemble evaluate --protocol {config.protocol}`: {results.prompts} prompts, "
        f"{results.pictures} pictures per system, {config.size} pixels, {config.steps} steps of "
        f"{config.scheduler.upper()}, guidance {config.guidance:g}; every system draws from the same noises. Intervals "
        f"are 95 %, paired by picture, over {config.bootstrap:,} bootstrap samples that draw whole prompts. Each score "
        f"is compared with the single expert that is best by it (–). Bold differences are clear of zero. Every table "
        f"lies as Markdown, LaTeX and CSV in `{folder}/tables`."
    )
    for one in results.metrics:
        higher = results.higher_is_better[one.metric]
        yield f"## {METRICS[one.metric].title}"
        yield f"`{one.metric}`, {'higher' if higher else 'lower'} is better."
        yield score_table(results, one)
        if one.categories:
            yield category_table(results, one)
    if results.main and any(one.versus for one in results.metrics):
        yield "## The ensemble against each of the others"
        yield "Difference of the ensemble's score to the other's, in the unit of each score."
        yield versus_table(results)
    if FIGURE in pictures:
        yield f"![Differences to the best expert, with their intervals]({folder}/{FIGURE})"
    if SHEET in pictures:
        yield f"![The same prompts and noises, drawn by every system]({folder}/{SHEET})"
    yield "## Settings"
    yield settings_list(config, notes)


def score_table(results: PictureResults, one: MetricResults) -> Table:
    """Mean, difference to the best expert, wins, and the spread."""
    head: Head = [
        *("system", Column(one.metric, digits=3), Column("difference to the best expert", digits=3)),
        *(Column("won", 100, 0, " %"), Column("smallest", digits=3), Column("largest", digits=3)),
    ]
    body: Body = [
        [title, s.mean, s.gap, None if name == one.best else s.wins, s.least, s.most]
        for name, title, _ in results.systems
        for s in [one.scores[name]]
    ]
    return Table(one.metric, METRICS[one.metric].title, head, body)


def category_table(results: PictureResults, one: MetricResults) -> Table:
    """Means by category."""
    head: Head = [f"{one.metric} on", *(title for _, title, _ in results.systems)]
    body: Body = [[label, *(own[name] for name, _, _ in results.systems)] for label, own in one.categories.items()]
    return Table(f"{one.metric}-by-category", f"{METRICS[one.metric].title} by category", head, body, digits=3)


def versus_table(results: PictureResults) -> Table:
    """The main ensemble against each of the others."""
    titles = {name: title for name, title, _ in results.systems}
    head: Head = ["against", *(Column(one.metric, digits=3) for one in results.metrics)]
    others = list(results.metrics[0].versus)
    body: Body = [[titles[name], *(one.versus[name] for one in results.metrics)] for name in others]
    return Table("versus", "The ensemble against each of the others", head, body)


def _draw_samples(scores: PictureScores, config: PicturesConfig, file: Path) -> bool:
    """The sheet, unless the pictures themselves were removed to save room."""
    gallery = Gallery(config, scores.prompts, {})
    first = [job for job in scores.jobs if job.number % config.images == 0 and job.repeat == 0]
    picked = [first[number] for number in spread(len(first), SHEET_ROWS)]
    if not all(gallery.file(name, job.number).is_file() for name, _, _ in scores.systems for job in picked):
        return False

    def images(name: str) -> list[Image.Image]:
        files = [gallery.file(name, job.number) for job in picked]
        return [Image.open(one).convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS) for one in files]

    save_sheet([scores.prompts[job.prompt].text for job in picked], list(system_columns(scores.systems, images)), file)
    return True
