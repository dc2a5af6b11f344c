"""The class and the schema that the scripts of the openai package ask answers of."""

from typing import Literal

from pydantic import BaseModel

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Oslo", "Paris"]},
        "degrees": {"type": "integer", "minimum": -40, "maximum": 50},
    },
    "required": ["city", "degrees"],
    "additionalProperties": False,
}


class Weather(BaseModel):
    """The weather of a city."""

    city: Literal["Oslo", "Paris"]
    degrees: Literal[-5, 0, 5, 20]
