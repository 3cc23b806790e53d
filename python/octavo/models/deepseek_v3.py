"""DeepSeek-V3 and R1 (DeepSeek-AI, 2024): DeepSeek-V2 whose experts are weighed by sigmoids and chosen with a
bias that balances them. The layers that predict further tokens are not loaded.
"""

from __future__ import annotations

from octavo.models.deepseek_v2 import DeepseekV2ForCausalLM


class DeepseekV3ForCausalLM(DeepseekV2ForCausalLM):
    """The bias and all else that differs is the spec's."""
