"""What a LoRA or LyCORIS file tells about itself: formulas, rank, parts, and how it was trained."""

from __future__ import annotations

import json
from collections import Counter

from diffusemble.experts.formats.adapters import BUNDLED, TEXT, canonical, split_name
from diffusemble.experts.formats.header import Header

_FORMULAS = {
    "down": "LoRA",
    "hada_w1_a": "LoHa",
    "lokr_w1": "LoKr",
    "lokr_w1_a": "LoKr",
    "oft_blocks": "OFT",
    "on_input": "(IA)³",
    "a1": "GLoRA",
    "diff": "full differences",
}
_WORDS = 12
_TRAINING = {
    "ss_sd_model_name": "trained on",
    "ss_base_model_version": "base",
    "modelspec.title": "title",
    "modelspec.trigger_phrase": "trigger",
    "ss_num_train_images": "training images",
    "ss_steps": "steps",
    "ss_resolution": "resolution",
}


def adapter_notes(header: Header) -> dict[str, str]:
    """Facts by name, for people."""
    kinds: Counter[str] = Counter()
    ranks: Counter[int] = Counter()
    parts: Counter[str] = Counter()
    inside = {key.split(".")[1]: None for key in header.starting(BUNDLED)}
    for key, form in header.forms.items():
        module, factor = split_name(key, header.forms) or (key, "")
        if factor in _FORMULAS:
            kinds["BOFT" if factor == "oft_blocks" and len(form.shape) == 4 else _FORMULAS[factor]] += 1
            parts[_part(module)] += 1
        if factor in ("magnitude", "dora_scale"):
            kinds["DoRA"] += 1
        if factor in ("down", "hada_w1_b", "lokr_w1_b", "lokr_w2_b") and form.shape:
            ranks[form.shape[0]] += 1
    notes = {
        "formulas": ", ".join(kinds),
        "modules": ", ".join(f"{count} of the {part}" for part, count in parts.most_common()),
        "rank": ", ".join(str(rank) for rank, _ in ranks.most_common(3)),
        **{name: header.metadata[key] for key, name in _TRAINING.items() if header.metadata.get(key, "None") != "None"},
        "words inside": ", ".join(inside),
        "words": words(header.metadata.get("ss_tag_frequency")),
    }
    return {name: text for name, text in notes.items() if text}


def words(text: str | None) -> str:
    """The most frequent words of the training captions, as kohya's programs store them."""
    try:
        tables = json.loads(text) if text else {}
        counts: Counter[str] = Counter()
        for table in tables.values():
            counts.update({word.strip(): int(count) for word, count in table.items()})
    except (ValueError, AttributeError, TypeError):
        return ""
    return ", ".join(word for word, _ in counts.most_common(_WORDS))


def _part(module: str) -> str:
    name = canonical(module)
    # From the last one, because the first one's names begin those of the others.
    found = (part for part, starts in reversed(TEXT.items()) if name.startswith(starts))
    return next(found, "denoiser").replace("_", " ")
