"""What every group of options is made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(gt=0)]


class Part(BaseModel):
    """A group of options: unknown keys and numbers without end are refused, values cannot be changed later."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
