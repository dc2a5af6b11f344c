"""Phi-3, Phi-3.5 and Phi-4: Llama with fused projections, a window in every layer, and longrope for long contexts.

Source: Phi-3 technical report, Abdin et al. 2024.
"""

from __future__ import annotations

from typing import ClassVar

from langport.layers.rotary import Parameters
from langport.models.base import Config
from langport.models.llama import Llama


class Phi3(Llama):
    """Phi3ForCausalLM. Its files already hold query, key and value, and gate and up, as one matrix each."""

    stacked: ClassVar[dict[str, tuple[str, ...]]] = {}
    defaults: ClassVar[Config] = {
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
    }

    def window(self, number: int) -> int | None:
        window: int | None = self.config.get("sliding_window")
        return window

    def rope_parameters(self) -> Parameters:
        parameters = super().rope_parameters()
        if parameters["rope_type"] in ("su", "yarn"):  # earlier names of longrope in this family's files
            parameters["rope_type"] = "longrope"
        return parameters
