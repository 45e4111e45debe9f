"""What every schema is made of."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Schema(BaseModel):
    """Base of every configuration: unknown keys are errors, and nothing changes after it was checked."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def listed(value: Any) -> Any:
    """One string or number as a list of one, so that both can be written."""
    return (value,) if isinstance(value, (str, int)) else value


Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(listed), Field(min_length=1)]
