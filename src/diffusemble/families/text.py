"""Every expert reads the prompt with its own tokenizers and text encoders, inside an unmodified pipeline.

A pipeline tokenizes a prompt once and keeps one embedding of it. So its tokenizer only spells the prompt, its text
encoder lets every expert's own pipeline read it, and the embedding is one long token per prompt with everything that
all experts read. Guidance (a concatenation along the batch) and several images per prompt (repeated rows) work on it
as on any other embedding.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BatchEncoding
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPTextModelOutput

from diffusemble.families.base import Conditions, Family

BEYOND = -1  # fills a shorter prompt up; no letter has this number
LONGEST = 65536
TOKENS = 1  # of a prompt, once it is packed; pipelines ask for negative prompts of that length


def pack_conditions(conditions: Sequence[Conditions], dtype: torch.dtype | None = None) -> Tensor:
    """Everything that n experts read of b prompts as one token per prompt, ``[b 1 f]``.

    Args:
        conditions: one set per expert, entries in the order of its family's ``shapes``.
        dtype: of the result; that of the first expert's text by default.
    """
    first = next(iter(conditions[0].values()))
    parts = [part.flatten(1).to(dtype or first.dtype) for own in conditions for part in own.values()]
    return torch.cat(parts, dim=1)[:, None]


def unpack_conditions(packed: Tensor, families: Sequence[Family]) -> tuple[Conditions, ...]:
    """Undo ``pack_conditions``, also of what pipelines make of several text encoders' tokens: one set per expert.

    Raises:
        ValueError: the tensor does not hold what these experts read.
    """
    shapes = [shape for family in families for shape in family.shapes.values()]
    sizes = [torch.Size(shape).numel() for shape in shapes]
    flat = packed.flatten(1)
    if packed.ndim != 3 or not flat.shape[1] or flat.shape[1] % sum(sizes):
        raise ValueError(
            f"An ensemble at output level reads encoder_hidden_states of {sum(sizes)} numbers per prompt, the texts of "
            f"its {len(families)} experts; got shape {list(packed.shape)}. Give prompts, or what encode_prompt of "
            f"ensemble.pipeline() makes of them."
        )
    rows = []
    for row in flat.split(sum(sizes), dim=1):
        parts = [part.unflatten(1, shape) for part, shape in zip(row.split(sizes, dim=1), shapes, strict=True)]
        rows.append([{name: parts.pop(0).contiguous() for name in family.shapes} for family in families])
    return tuple(family.join(own) for family, own in zip(families, zip(*rows, strict=True), strict=True))


class SpellingTokenizer:
    """Stands where ``pipe.tokenizer`` stands: letters as numbers, so that no expert's tokenizer misses anything.

    Args:
        usual: length that the first expert's pipeline gives prompts where nobody says another; None for none.
    """

    model_max_length = LONGEST
    added_tokens_encoder: dict[str, int] = {}  # noqa: RUF012 (pipelines read it; nothing is ever added)

    def __init__(self, usual: int | None = None) -> None:
        self.usual = usual

    def __call__(
        self, text: str | Sequence[str], return_tensors: str | None = None, max_length: int | None = None, **_: Any
    ) -> BatchEncoding:
        """``input_ids [b s]`` with the prompts' Unicode numbers, whatever padding the pipeline asks for.

        The mask covers one token per prompt: that is what the text encoder makes of it.

        Raises:
            ValueError: ``max_length`` is somebody's choice.
        """
        if max_length not in (None, LONGEST, self.usual, TOKENS):
            raise ValueError(
                f"max_sequence_length={max_length} is a length for one tokenizer, but at output level every expert "
                f"reads the prompt to the length of its own pipeline ({self.usual} tokens for the first one). "
                f"Leave max_sequence_length out."
            )
        prompts = [text] if isinstance(text, str) else list(text)
        longest = max(1, *(len(prompt) for prompt in prompts))
        ids = [[*map(ord, prompt), *[BEYOND] * (longest - len(prompt))] for prompt in prompts]
        return BatchEncoding({"input_ids": ids, "attention_mask": [[1]] * len(ids)}, tensor_type=return_tensors)

    def apply_chat_template(self, messages: Sequence[Mapping[str, str]], **_: Any) -> str:
        """The prompt itself: every expert's own pipeline puts it into a conversation where it wants one."""
        return messages[-1]["content"]

    def batch_decode(self, ids: Tensor) -> list[str]:
        """Undo the spelling."""
        return ["".join(chr(number) for number in row if number != BEYOND) for row in ids.tolist()]

    def tokenize(self, text: str) -> list[str]:
        """No tokens: textual inversions are looked up by the experts' own pipelines."""
        return []


class OutputTextEncoder(nn.Module):
    """Stands where ``pipe.text_encoder`` (``_2``, ``_3``) stands and lets all experts read the prompt.

    Args:
        families: one per expert.
        name: of the part it replaces, such as ``"text_encoder_2"``.
        copies: how many tokens' width its token has; SD3's pipelines put the tokens of three encoders together.
    """

    def __init__(self, families: Sequence[Family], name: str, copies: int = 1) -> None:
        super().__init__()
        self.families = tuple(families)
        self.name, self.copies = name, copies
        own = {
            id(part): part
            for family in families
            for key, part in family.parts.items()
            if key.startswith("text_encoder") and isinstance(part, nn.Module)
        }
        self.encoders = nn.ModuleList(own.values())

    @property
    def _stands_for(self) -> Any:
        parts = self.families[0].parts
        return parts.get(self.name) or parts["text_encoder"]

    @property
    def config(self) -> Any:
        """Configuration of the first expert's encoder."""
        return self._stands_for.config

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the first expert's encoder."""
        return next(self._stands_for.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Device of the first expert's encoder."""
        return next(self._stands_for.parameters()).device

    @property
    def text_model(self) -> Any:
        """Where pipelines look for a norm when they skip CLIP layers.

        Raises:
            ValueError: always.
        """
        raise ValueError(_SKIPPED)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> Any:
        """The packed conditions ``[b 1 f]`` of spelled prompts, in the place of any layer's tokens."""
        prompts = SpellingTokenizer().batch_decode(input_ids)
        conditions = _encode(self.families, prompts, input_ids.device)
        token = pack_conditions(conditions, self.dtype).repeat(1, 1, self.copies)
        layers = _OnlyTheUsual((token, token))
        slot = 1 if self.name == "text_encoder_2" else 0
        pooled = self.families[0].pooled(conditions[0], slot)
        pooled = None if pooled is None else pooled.to(self.dtype)
        if self.copies == 1 and type(self._stands_for).__name__.endswith("WithProjection"):
            return CLIPTextModelOutput(text_embeds=pooled, last_hidden_state=token, hidden_states=layers)
        return BaseModelOutputWithPooling(last_hidden_state=token, pooler_output=pooled, hidden_states=layers)


class _OnlyTheUsual(tuple[Tensor, ...]):
    """Layers of an encoder, of which a pipeline may ask for the last but one, the usual one."""

    def __getitem__(self, index: Any) -> Any:
        if index not in (-1, -2):
            raise ValueError(_SKIPPED)
        return super().__getitem__(index)


_SKIPPED = (
    "clip_skip picks a layer of one text encoder, but at output level every expert reads the prompt in its own way. "
    "Leave clip_skip out, or take away layers of the expert's text encoder before you build the ensemble."
)


def text_parts(families: Sequence[Family]) -> dict[str, Any]:
    """Tokenizers and text encoders for the first expert's pipeline, by the names of its parts.

    SDXL's pipelines would also make zeros of a missing negative prompt, for all experts alike; each has its own way.
    """
    cls: Any = families[0].expert.pipeline_class
    first = families[0].parts
    names = [name for name in first if name.startswith("text_encoder") and first[name] is not None]
    if "text_encoder_3" in inspect.signature(cls).parameters:
        names = ["text_encoder", "text_encoder_2", "text_encoder_3"]  # also where SD3 does without T5
    wide = {"text_encoder_3": 2}  # SD3: T5's tokens follow those of two encoders side by side
    parts: dict[str, Any] = {name: OutputTextEncoder(families, name, wide.get(name, 1)) for name in names}
    usual = inspect.signature(cls.encode_prompt).parameters.get("max_sequence_length")
    tokenizer = SpellingTokenizer(usual.default if usual else None)
    parts |= {name.replace("text_encoder", "tokenizer"): tokenizer for name in names}
    if "force_zeros_for_empty_prompt" in first:
        parts["force_zeros_for_empty_prompt"] = False
    return parts


def _encode(families: Sequence[Family], prompts: Sequence[str], device: torch.device) -> list[Conditions]:
    """Conditions of every expert; experts of one kind that share their encoders read once."""
    done: dict[Any, Conditions] = {}
    found = []
    for family in families:
        encoders = (id(part) for key, part in family.parts.items() if key.startswith("text_encoder"))
        zeros = family.parts.get("force_zeros_for_empty_prompt")
        key = (family.expert.pipeline_class, *family.shapes.items(), zeros, *encoders)
        if key not in done:
            done[key] = family.encode(prompts, device)
        found.append(done[key])
    return found
