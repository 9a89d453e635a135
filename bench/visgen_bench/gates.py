"""Gates."""

from pydantic import BaseModel, ConfigDict


class Gate(BaseModel):
    """A gate."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    name: str
