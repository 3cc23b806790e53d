"""The architectures there are, and what the name of each says beyond its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from octavo.hf.experts import ExpertRule
from octavo.hf.names import TextTower


@dataclass(frozen=True)
class Architecture:
    """What an architecture's name says about a model beyond its config.json."""

    module: str  # under octavo.models; the class there has the architecture's name
    qkv_bias: bool | None = None  # None: config.json's attention_bias decides, for the output too
    qk_norm: bool = False
    windows: str = "none"  # a rule of hf/windows.py
    dual_rope: bool = False  # layers with a window have rotary parameters of their own
    gemma: bool = False  # scaled embeddings, norms of 1 + w around each half of a layer, soft caps
    state: str = "none"  # a rule of hf/state.py: which layers are recurrent
    granite: bool = False  # multipliers of embeddings, residuals, scores and logits
    sinks: bool = False  # GPT-OSS: of attention, and experts that may be stored in MXFP4
    speech: bool = False  # an audio encoder and a decoder in Whisper's spelling
    llama4: bool = False  # layers without rotary positions, heads of length one, tempered queries
    deepseek: int = 0  # its generation, 2 or 3: latent attention, and experts in groups
    experts: ExpertRule | None = None
    renames: tuple[tuple[str, str], ...] = ()  # what checkpoints call parts of names, and the model
    text_tower: TextTower | None = None  # a text model beside others in one checkpoint
    defaults: Mapping[str, Any] = field(default_factory=dict)  # for keys config.json leaves out


_MAMBA2 = {
    "mamba_n_heads": 128,
    "mamba_n_groups": 1,
    "mamba_d_state": 256,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
}
_BAMBA = {
    **_MAMBA2,
    "num_key_value_heads": 8,
    "max_position_embeddings": 262144,
    "rms_norm_eps": 1e-5,
    "partial_rotary_factor": 0.5,
}
_GRANITE_HYBRID = {
    **_MAMBA2,
    "intermediate_size": 11008,
    "shared_intermediate_size": 1024,
    "num_local_experts": 8,
    "attention_multiplier": 1.0,
}
_MISTRAL = {"num_key_value_heads": 8, "sliding_window": 4096}
_QWEN3 = {"head_dim": 128}
_MIXTRAL = {"num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 1e6}
_QWEN3_MOE = {"num_key_value_heads": 4, "moe_intermediate_size": 768, "sliding_window": 4096}
_QWEN3_EXPERTS = ExpertRule(
    inner_key="moe_intermediate_size",
    step_key="decoder_sparse_step",
    renormalize=None,
    defaults_count=128,
    defaults_per_token=8,
)
_GEMMA = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
_GEMMA2 = {
    **_GEMMA,
    "vocab_size": 256000,
    "max_position_embeddings": 8192,
    "sliding_window_pattern": 2,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
_GEMMA3 = {
    **_GEMMA,
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "sliding_window_pattern": 6,
    "rope_theta": 1e6,
}
_GEMMA3_TOWER = TextTower(
    prefixes={
        "language_model.model.": "model.",
        "model.language_model.": "model.",
        "language_model.lm_head.": "lm_head.",
    },
    others=("vision_tower.", "model.vision_tower.", "multi_modal_projector.", "model.multi_modal_projector."),
)

_GPT_OSS = {
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_hidden_layers": 36,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 201088,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "attention_bias": True,
    "sliding_window": 128,
    "sliding_window_pattern": 2,
    "rope_theta": 150000.0,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 32.0,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    },
}
_GPT_OSS_EXPERTS = ExpertRule(bias=True, clamped=True, defaults_count=128, defaults_per_token=4)
_LLAMA4 = {
    "hidden_size": 5120,
    "intermediate_size": 8192,
    "intermediate_size_mlp": 16384,
    "num_hidden_layers": 48,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 202048,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "attention_chunk_size": 8192,
    "rope_theta": 500000.0,
}
_LLAMA4_EXPERTS = ExpertRule(
    dense_key="intermediate_size_mlp",
    step_key="interleave_moe_layer_step",
    sigmoid=True,
    renormalize=False,
    shared=True,
    defaults_count=16,
    defaults_per_token=1,
)
_LLAMA4_TOWER = TextTower(
    prefixes={"language_model.model.": "model.", "language_model.lm_head.": "lm_head."},
    others=("vision_model.", "multi_modal_projector."),
)
_DEEPSEEK2 = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 102400,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "moe_intermediate_size": 1407,
}
_DEEPSEEK3 = {
    **_DEEPSEEK2,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "vocab_size": 129280,
    "max_position_embeddings": 4096,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 2048,
    "first_k_dense_replace": 3,
    "n_group": 8,
    "topk_group": 4,
    "routed_scaling_factor": 2.5,
}

_WHISPER = {
    "vocab_size": 51865,
    "d_model": 384,
    "encoder_layers": 4,
    "encoder_attention_heads": 6,
    "encoder_ffn_dim": 1536,
    "decoder_layers": 4,
    "decoder_attention_heads": 6,
    "decoder_ffn_dim": 1536,
    "decoder_start_token_id": 50257,
    "num_mel_bins": 80,
    "max_source_positions": 1500,
    "max_target_positions": 448,
    "activation_function": "gelu",
    "tie_word_embeddings": True,
}

# A new model is one line here and one file in octavo/models.
ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "BambaForCausalLM": Architecture("bamba", state="bamba", defaults=_BAMBA),
        "DeepseekV2ForCausalLM": Architecture("deepseek_v2", deepseek=2, defaults=_DEEPSEEK2),
        "DeepseekV3ForCausalLM": Architecture("deepseek_v3", deepseek=3, defaults=_DEEPSEEK3),
        "GraniteMoeHybridForCausalLM": Architecture(
            "granite_moe_hybrid", state="granite", granite=True, defaults=_GRANITE_HYBRID
        ),
        "LlamaForCausalLM": Architecture("llama"),
        "MistralForCausalLM": Architecture("mistral", windows="all", defaults=_MISTRAL),
        "Qwen2ForCausalLM": Architecture("qwen2", qkv_bias=True, windows="layered"),
        "Qwen3ForCausalLM": Architecture("qwen3", qk_norm=True, windows="layered", defaults=_QWEN3),
        "MixtralForCausalLM": Architecture(
            "mixtral",
            windows="all",
            experts=ExpertRule(),
            renames=((".block_sparse_moe.", ".mlp."),),
            defaults=_MIXTRAL,
        ),
        "Qwen3MoeForCausalLM": Architecture(
            "qwen3_moe", qk_norm=True, windows="switched", experts=_QWEN3_EXPERTS, defaults=_QWEN3_MOE
        ),
        "Gemma2ForCausalLM": Architecture("gemma2", windows="pattern", gemma=True, defaults=_GEMMA2),
        "Gemma3ForCausalLM": Architecture(
            "gemma3", qk_norm=True, windows="pattern", dual_rope=True, gemma=True, defaults=_GEMMA3
        ),
        "Gemma3ForConditionalGeneration": Architecture(
            "gemma3",
            qk_norm=True,
            windows="pattern",
            dual_rope=True,
            gemma=True,
            text_tower=_GEMMA3_TOWER,
            defaults=_GEMMA3,
        ),
        "GptOssForCausalLM": Architecture(
            "gpt_oss", windows="pattern", sinks=True, experts=_GPT_OSS_EXPERTS, defaults=_GPT_OSS
        ),
        "Llama4ForCausalLM": Architecture(
            "llama4", windows="chunked", llama4=True, experts=_LLAMA4_EXPERTS, defaults=_LLAMA4
        ),
        "Llama4ForConditionalGeneration": Architecture(
            "llama4",
            windows="chunked",
            llama4=True,
            experts=_LLAMA4_EXPERTS,
            text_tower=_LLAMA4_TOWER,
            defaults=_LLAMA4,
        ),
        "WhisperForConditionalGeneration": Architecture(
            "whisper", speech=True, renames=(("proj_out.", "lm_head."),), defaults=_WHISPER
        ),
    }
)
