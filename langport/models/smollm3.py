"""SmolLM3: Llama with layers that know no positions. Sources: Hugging Face 2025; NoPE, Kazemnejad et al. 2023."""

from __future__ import annotations

from typing import ClassVar

from langport.models.llama import Llama


class SmolLM3(Llama):
    """SmolLM3ForCausalLM."""

    defaults: ClassVar = {"num_key_value_heads": 4, "rope_theta": 2e6, "no_rope_layer_interval": 4}

    def has_positions(self, number: int) -> bool:
        # In spite of its name the list says which layers do have positions.
        listed = self.config.get("no_rope_layers")
        return bool(listed[number] if listed else (number + 1) % self.config["no_rope_layer_interval"])

    def window(self, number: int) -> int | None:
        window: int | None = self.config.get("sliding_window")
        if window is None or not self.config.get("use_sliding_window"):
            return None
        kinds = self.config.get("layer_types")
        is_local = kinds[number] == "sliding_attention" if kinds else not self.has_positions(number)
        return window if is_local else None
