"""What a train cell can learn by: one frozen dataclass for the objectives it stands for."""

import typing
from collections.abc import Mapping
from typing import Annotated, Any, get_args

from pydantic import Field

from visgen.objectives.gan import GanRecipe
from visgen.objectives.prediction import PredictorRecipe
from visgen.objectives.videogpt import PriorRecipe, VqvaeRecipe

Recipe = Annotated[
    GanRecipe | VqvaeRecipe | PriorRecipe | PredictorRecipe,
    Field(discriminator="objective"),
]


def _by_objective() -> dict[str, type[Any]]:
    found = {}
    for kind in get_args(get_args(Recipe)[0]):
        for objective in get_args(typing.get_type_hints(kind)["objective"]):
            found[objective] = kind
    return found


OBJECTIVES: Mapping[str, type[Any]] = _by_objective()


def fields(objective: object = None) -> dict[str, Any]:
    """Fields of an objective's recipe and their types; of all recipes if it is not one of them."""
    one = OBJECTIVES.get(objective) if isinstance(objective, str) else None
    kinds = [one] if one else list(OBJECTIVES.values())
    found: dict[str, Any] = {}
    for kind in kinds:
        found = {**typing.get_type_hints(kind), **found}
    return found
