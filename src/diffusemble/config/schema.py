"""What every schema is made of: the base class, common types, and errors that name what there is instead."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from diffusemble.registry import SCHEDULERS, Entry


class Schema(BaseModel):
    """Base of every configuration: unknown keys are errors, and nothing changes after it was checked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    drawn_by: ClassVar[str | None] = None
    """The command whose pictures carry such a configuration."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """A hint for error messages: ``(did you mean ...?)``, or nothing."""
    close = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def listed(value: Any) -> Any:
    """One string or number as a list of one, so that both can be written."""
    return (value,) if isinstance(value, (str, int)) else value


Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(listed), Field(min_length=1)]
Prompts = Annotated[tuple[str, ...], BeforeValidator(listed), Field(min_length=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Side = Annotated[int, Field(gt=0, multiple_of=8)]


def known(table: Mapping[str, Entry], name: str, what: str) -> str:
    """``name``, if the table has it.

    Raises:
        ValueError: it has not; the message lists those it has.
    """
    if name not in table:
        raise ValueError(f"there is no {what} {name!r}{nearest(name, table)}. Choose one of: {', '.join(table)}")
    return name


def _known_scheduler(name: str) -> str:
    return known(SCHEDULERS, name, "scheduler")


Scheduler = Annotated[str, AfterValidator(_known_scheduler)]
"""A name in ``registry.SCHEDULERS``."""

Options = TypeVar("Options", bound=BaseModel)


def chosen(model: type[Options], options: Mapping[str, Any], what: str, also: Iterable[str] = ()) -> Options:
    """A method's ``options``, checked; ``what`` names the method, ``also`` what it takes beside its fields.

    Raises:
        ValueError: an option that it does not have, or a value that the option cannot have.
    """
    known = [*model.model_fields, *also]
    for option in options:
        if option not in known:
            raise ValueError(f"{what} has no option {option!r}. Its options are: {', '.join(known) or 'none'}.")
    try:
        return model(**options)
    except ValidationError as error:
        raise ValueError("\n".join(_explain(what, error))) from error


def _explain(method: str, error: ValidationError) -> Iterator[str]:
    for problem in error.errors():
        option = ".".join(str(part) for part in problem["loc"])
        own = problem.get("ctx", {}).get("error")  # a message of this package
        what = own or f"{problem['msg']}; got {problem['input']!r:.80}."
        yield f"{method}, option {option!r}: {what}" if option else f"{method}: {what}"
