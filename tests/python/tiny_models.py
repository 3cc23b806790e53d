"""Tiny random models of real architectures, made with transformers, for every test that needs a checkpoint.

Weights are random but not trivial: norms differ from one, biases from zero, and greedy outputs wander instead
of repeating one token, so a wrong head, window or position changes the tokens. All float32 and seeded.
"""

from __future__ import annotations

import functools
import json
import random
from pathlib import Path
from typing import Any

VOCAB_SIZE = 512
WINDOW = 24  # not a multiple of any block size in use
NAMES = (
    "llama",
    "mistral",
    "mistral-window",
    "qwen2",
    "qwen2-hybrid",
    "qwen3",
    "gemma2",
    "gemma3",
    "bamba",
    "granite-hybrid",
)
NAMES += ("mixtral", "qwen3-moe", "gpt-oss", "llama4", "deepseek-v2", "deepseek-v3")

_WORDS = (
    "the a cat dog sits runs jumps over under river stone paged attention cache block scheduler token image "
    "model server request prefix hash naïve café Grüße 你好 世界 🙂 12 345 def return print"
).split()

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL_TOKENS = ("<|pad|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>")

_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
_TIED_STD = {"gemma2": 0.05, "gemma3_text": 0.05}  # scaled up by the root of the hidden size
_PLAIN = {"rope_type": "default", "rope_theta": 1e6}


def _shape(**changes: Any) -> dict[str, Any]:
    shape = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 128,
        "intermediate_size": 192,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_parameters": dict(_PLAIN),
    }
    return {**shape, **changes}


def config_of(name: str, **changes: Any) -> Any:
    """Return the transformers config of one of NAMES, with `changes` to its fields."""
    import transformers

    if name == "llama":
        fields = _shape(rope_parameters=dict(_LLAMA3), tie_word_embeddings=False)
        return transformers.LlamaConfig(**{**fields, **changes})
    if name in ("mistral", "mistral-window"):
        window = WINDOW if name == "mistral-window" else None
        fields = _shape(sliding_window=window, tie_word_embeddings=False)
        return transformers.MistralConfig(**{**fields, **changes})
    if name == "qwen2":
        return transformers.Qwen2Config(**{**_shape(tie_word_embeddings=True), **changes})
    if name == "qwen2-hybrid":  # three sliding layers to one of full attention, whose blocks share a pool
        types = ["sliding_attention"] * 3 + ["full_attention"]
        windows = {"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": types}
        fields = _shape(num_hidden_layers=4, tie_word_embeddings=True, **windows)
        return transformers.Qwen2Config(**{**fields, **changes})
    if name == "qwen3":
        fields = _shape(hidden_size=96, head_dim=32, tie_word_embeddings=True)
        return transformers.Qwen3Config(**{**fields, **changes})
    if name in ("gemma2", "gemma3"):
        # A scale that is not head_dim's, and for Gemma 3 an embedding of its own for each kind of layer.
        shape = {"hidden_size": 96, "head_dim": 32, "query_pre_attn_scalar": 24, "sliding_window": WINDOW}
        if name == "gemma2":
            caps = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 8.0}
            return transformers.Gemma2Config(**{**_shape(num_hidden_layers=4, **shape, **caps), **changes})
        ropes = {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        }
        fields = _shape(num_hidden_layers=7, **shape, rope_parameters=ropes)
        return transformers.Gemma3TextConfig(**{**fields, **changes})
    if name == "granite-hybrid":  # no positions at all, and a multiplier wherever one may stand
        mixers = {"mamba_n_heads": 4, "mamba_d_state": 16, "mamba_chunk_size": 16, "num_local_experts": 0}
        scales = {"embedding_multiplier": 2.0, "attention_multiplier": 0.1, "logits_scaling": 1.5}
        types = ["linear_attention", "full_attention", "linear_attention"]
        fields = _shape(shared_intermediate_size=160, residual_multiplier=0.7, layer_types=types)
        return transformers.GraniteMoeHybridConfig(**{**fields, **mixers, **scales, **changes})
    if name == "bamba":  # a recurrent layer before and after one of attention
        mixers = {"mamba_n_heads": 8, "mamba_n_groups": 2, "mamba_d_state": 12, "mamba_chunk_size": 16}
        fields = _shape(attn_layer_indices=[1], **mixers)
        return transformers.BambaConfig(**{**fields, **changes})
    if name == "mixtral":
        fields = _shape(num_local_experts=4, num_experts_per_tok=2, sliding_window=WINDOW)
        return transformers.MixtralConfig(**{**fields, **changes})
    if name == "qwen3-moe":  # a dense layer between two with experts, whose weights need not sum to one
        fields = _shape(hidden_size=96, head_dim=32, num_experts=8, num_experts_per_tok=3)
        fields |= {"moe_intermediate_size": 40, "norm_topk_prob": False, "mlp_only_layers": [1]}
        return transformers.Qwen3MoeConfig(**{**fields, **changes})
    if name == "gpt-oss":
        yarn = {"rope_type": "yarn", "rope_theta": 1.5e5, "factor": 8.0, "truncate": False}
        yarn["original_max_position_embeddings"] = 256
        fields = _shape(hidden_size=96, head_dim=32, num_hidden_layers=4, rope_parameters=yarn)
        fields |= {"num_local_experts": 6, "num_experts_per_tok": 3, "sliding_window": WINDOW}
        return transformers.GptOssConfig(**{**fields, "intermediate_size": 64, **changes})
    if name == "llama4":  # a chunk that is no multiple of a block, and temperatures that change early
        fields = _shape(hidden_size=96, head_dim=32, num_hidden_layers=4, intermediate_size_mlp=192)
        fields |= {"num_local_experts": 4, "num_experts_per_tok": 2, "interleave_moe_layer_step": 2}
        fields |= {"attention_chunk_size": 40, "floor_scale": 24, "attn_scale": 0.3, "intermediate_size": 64}
        return transformers.Llama4TextConfig(**{**fields, **changes})
    if name in ("deepseek-v2", "deepseek-v3"):
        return _deepseek(name, changes)
    raise ValueError(f"{name!r} is not one of {', '.join(NAMES)}")


def _deepseek(name: str, changes: dict[str, Any]) -> Any:
    """Heads whose parts differ in width, a stretched context that the scale makes up for, a dense layer
    before those with experts, and groups without which a token would have other experts."""
    import transformers

    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 256}
    yarn |= {"beta_fast": 32, "beta_slow": 1, "mscale": 0.7, "mscale_all_dim": 0.9}
    fields = _shape(num_key_value_heads=4, rope_parameters=yarn, kv_lora_rank=48, qk_rope_head_dim=16)
    fields |= {"qk_nope_head_dim": 16, "v_head_dim": 24, "moe_intermediate_size": 40, "n_shared_experts": 2}
    fields |= {"n_routed_experts": 12, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 4}
    fields |= {"first_k_dense_replace": 1, "routed_scaling_factor": 1.3}
    if name == "deepseek-v3":
        return transformers.DeepseekV3Config(**{**fields, "q_lora_rank": None, **changes})
    # A vector of the cache is then no multiple of a register, and no two widths are equal.
    fields |= {"kv_lora_rank": 40, "qk_rope_head_dim": 12, "qk_nope_head_dim": 20}
    fields |= {"q_lora_rank": 56, "topk_method": "group_limited_greedy"}
    return transformers.DeepseekV2Config(**{**fields, **changes})


def build_reference(config: Any, seed: int = 0) -> Any:
    """Return a transformers model in float32 with random weights, in eval mode."""
    import torch
    import transformers

    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    generator = torch.Generator().manual_seed(seed)
    tied = config.tie_word_embeddings
    with torch.no_grad():
        biases = [pair for pair in model.named_buffers() if pair[0].endswith("e_score_correction_bias")]
        for name, weight in sorted([*model.named_parameters(), *biases]):
            noise = torch.randn(weight.shape, generator=generator)
            if "norm" in name:
                weight.add_(0.2 * noise)  # around one, or zero where the model adds the one itself
            elif name.endswith("A_log"):
                weight.copy_(noise - 3.0)  # heads that forget within a token, and some that never do
            elif name.endswith("bias"):
                weight.copy_(0.2 * noise)
            elif "embed_tokens" in name:
                # A tied head with a large embedding makes a model repeat its last token for ever.
                weight.copy_((_TIED_STD.get(config.model_type, 0.15) if tied else 1.0) * noise)
            elif "lm_head" in name:
                weight.copy_(0.3 * noise)
            else:
                weight.copy_(1.2 * noise / weight.shape[-1] ** 0.5)
    model.tie_weights()
    return model


def computed_by_transformers(name: str) -> bool:
    """Whether the transformers at hand computes the model of one of NAMES.

    Before 5.23 a mixer of Bamba norms over all its groups at once, where the model norms each by itself.
    """
    import transformers
    from packaging.version import Version

    return name != "bamba" or Version(transformers.__version__) >= Version("5.23")


def save_model(folder: Path, name: str, seed: int = 0, **changes: Any) -> Path:
    """Write one of NAMES to a folder: both configs, model.safetensors and the tokenizer."""
    import transformers

    eos = SPECIAL_TOKENS.index("<|im_end|>")
    ids = {"bos_token_id": 1, "eos_token_id": eos, "pad_token_id": 0}
    model = build_reference(config_of(name, **{**ids, **changes}), seed)
    model.generation_config = transformers.GenerationConfig(**ids)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


# An encoder of one second of audio: 100 frames, 50 positions, which end inside a block.
WHISPER = {
    "vocab_size": VOCAB_SIZE,
    "d_model": 64,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 96,
    "decoder_layers": 3,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 128,
    "num_mel_bins": 20,
    "max_source_positions": 50,
    "max_target_positions": 96,
    "decoder_start_token_id": 2,
    "bos_token_id": 1,
    "eos_token_id": 3,
    "pad_token_id": 0,
}
WHISPER_FEATURES = {
    "feature_extractor_type": "WhisperFeatureExtractor",
    "feature_size": 20,
    "chunk_length": 1,
    "sampling_rate": 16000,
    "hop_length": 160,
    "n_fft": 400,
    "padding_value": 0.0,
}
WHISPER_GENERATION = {
    "decoder_start_token_id": 2,
    "bos_token_id": 1,
    "eos_token_id": 3,
    "pad_token_id": 0,
    "max_length": 96,
    "forced_decoder_ids": [[1, 9], [2, 11]],
    # Among them what the tiny model would say often, and first.
    "suppress_tokens": [0, 5, 189, 258],
    "begin_suppress_tokens": [3, 12, 293, 476],
}


def build_whisper(seed: int = 0, **changes: Any) -> Any:
    """Return transformers' Whisper in float32 with random weights that listen: audio changes every token."""
    import torch
    import transformers

    torch.manual_seed(seed)
    config = transformers.WhisperConfig(**{**WHISPER, **changes}, suppress_tokens=None)
    model = transformers.WhisperForConditionalGeneration(config).float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            noise = torch.randn(weight.shape, generator=generator)
            if "layer_norm" in name and name.endswith("weight"):
                weight.add_(0.2 * noise)
            elif name.endswith("bias"):
                weight.copy_(0.2 * noise)
            elif "embed_tokens" in name:
                weight.copy_(0.15 * noise)
            elif "decoder.embed_positions" in name:
                weight.copy_(3.0 * noise)  # what makes tokens wander
            elif "encoder.embed_positions" not in name:
                fan = weight[0].numel()
                weight.copy_((1.3 if "encoder_attn" in name else 1.2) * noise / fan**0.5)
    model.tie_weights()
    return model


def save_whisper(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Write a tiny Whisper to a folder, with all that transformers would write beside it."""
    build_whisper(seed, **changes).save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps(WHISPER_GENERATION), encoding="utf-8")
    (folder / "preprocessor_config.json").write_text(json.dumps(WHISPER_FEATURES), encoding="utf-8")
    return save_tokenizer(folder)


def sounds(count: int, seed: int = 0) -> list[Any]:
    """Return float32 samples at 16 kHz: tones that glide, in noise, of 0.1 to 1 second."""
    import numpy as np

    draw = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        time = np.arange(draw.integers(1600, 16001)) / 16000
        tone = np.sin(2 * np.pi * draw.uniform(100, 3000) * time * (1 + draw.uniform(0, 1) * time))
        made.append((draw.uniform(0.1, 0.9) * tone + 0.05 * draw.standard_normal(len(time))).astype("f4"))
    return made


def save_tokenizer(folder: Path) -> Path:
    """Write a byte-level BPE tokenizer of VOCAB_SIZE tokens with a chat template, as transformers would."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(_tokenizer_json(), encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 2048,
        "bos_token": "<|endoftext|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|pad|>",
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
    return folder


@functools.cache
def _tokenizer_json() -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    draw = random.Random(0)
    lines = [" ".join(draw.choices(_WORDS, k=draw.randint(4, 16))) + "." for _ in range(1000)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    return str(tokenizer.to_str())


def random_prompts(count: int, *, low: int = 1, high: int = 96, seed: int = 0) -> list[list[int]]:
    """Return prompts of mixed lengths from ordinary tokens (no special ones)."""
    draw = random.Random(seed)
    first = len(SPECIAL_TOKENS)
    return [[draw.randrange(first, VOCAB_SIZE) for _ in range(draw.randint(low, high))] for _ in range(count)]
