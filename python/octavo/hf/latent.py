"""Multi-head latent attention, and DeepSeek's experts beside it, in config.json."""

from __future__ import annotations

import math
from dataclasses import dataclass

from octavo.hf.experts import ExpertSpec
from octavo.hf.reader import Reader
from octavo.hf.rope import RopeSpec

_MAX_WIDTH = 1024  # of a cached vector: a limit of ops.latent_attention


@dataclass(frozen=True, kw_only=True)
class LatentSpec:
    """Attention whose cache holds one vector of a token and layer: a latent, and a rotated key beside it."""

    rank: int  # of the latent, which keys and values are made of
    rope_dim: int  # rotated dimensions of a query head, and of the one key that all heads share
    nope_dim: int  # dimensions of a head without positions
    value_dim: int
    query_rank: int  # of the latent that queries are made of; 0: they are one product
    interleaved: bool  # the rotation is of neighbouring pairs

    @property
    def width(self) -> int:
        """Entries of a cached vector."""
        return self.rank + self.rope_dim

    @property
    def head_dim(self) -> int:
        """Width of a query head."""
        return self.nope_dim + self.rope_dim

    def parameters(self, hidden: int, heads: int, *, bias: bool) -> int:
        """Elements of one layer's attention."""
        queries = heads * self.head_dim * (self.query_rank or hidden)
        if self.query_rank:
            queries += self.query_rank * (hidden + 1 + bias)  # its norm too
        keys = self.width * (hidden + bias) + self.rank
        heads_of_keys = self.rank * heads * (self.nope_dim + self.value_dim)
        return queries + keys + heads_of_keys + hidden * (heads * self.value_dim + bias)

    def activations(self, heads: int) -> int:
        """Elements that one token holds at once: queries before and after, the output twice, its vector."""
        absorbed = heads * (self.width + self.rank)
        return absorbed + heads * (self.head_dim + self.value_dim) + self.query_rank + self.width


def latent_spec(config: Reader, heads: int) -> LatentSpec:
    """Read the attention of DeepSeek-V2 and of what follows it."""
    kv_heads = config.integer("num_key_value_heads", heads, high=1 << 16)
    if kv_heads != heads:
        remedy = f"with latent attention every one of num_attention_heads={heads} has its own"
        raise config.error("num_key_value_heads", kv_heads, remedy)
    ranked = config.get("q_lora_rank") is not None
    spec = LatentSpec(
        rank=config.integer("kv_lora_rank", high=_MAX_WIDTH),
        rope_dim=config.integer("qk_rope_head_dim", high=_MAX_WIDTH),
        nope_dim=config.integer("qk_nope_head_dim", high=1 << 12),
        value_dim=config.integer("v_head_dim", high=1 << 12),
        query_rank=config.integer("q_lora_rank") if ranked else 0,
        interleaved=config.flag("rope_interleave", True),
    )
    if spec.rope_dim % 2:
        raise config.error("qk_rope_head_dim", spec.rope_dim, "it must be even")
    if spec.width > _MAX_WIDTH:
        remedy = f"with qk_rope_head_dim={spec.rope_dim} a cached vector may have {_MAX_WIDTH} entries"
        raise config.error("kv_lora_rank", spec.rank, remedy)
    return spec


def latent_scale(latent: LatentSpec, rope: RopeSpec) -> float:
    """What scores are multiplied by: DeepSeek makes up for a stretched context (YaRN) here too."""
    scale = 1.0 / math.sqrt(latent.head_dim)
    if rope.kind == "default" or not rope.mscale_all_dim or rope.factor <= 1:
        return scale
    stretch = 0.1 * rope.mscale_all_dim * math.log(rope.factor) + 1.0
    return scale * stretch * stretch


def deepseek_experts(config: Reader, num_layers: int, *, corrected: bool) -> ExpertSpec:
    """Read DeepSeek's experts: small ones of which groups are chosen first, and shared ones beside them.

    `corrected`: DeepSeek-V3's, weighed by sigmoids, with a bias that only the choice sees.
    """
    count = config.integer("n_routed_experts", high=1 << 16)
    per_token = config.integer("num_experts_per_tok", high=1 << 16)
    groups, top_groups = _groups(config, corrected=corrected)
    if count % groups:
        raise config.error("n_group", groups, f"it must cut n_routed_experts={count} evenly")
    if top_groups > groups:
        raise config.error("topk_group", top_groups, f"there are n_group={groups}")
    if per_token > top_groups * (count // groups):
        held = top_groups * (count // groups)
        raise config.error("num_experts_per_tok", per_token, f"the groups of a token hold {held} experts")
    if config.integer("moe_layer_freq", 1) != 1:
        raise config.error("moe_layer_freq", config.get("moe_layer_freq"), "only 1 is supported")
    scoring = "sigmoid" if corrected else "softmax"
    if config.get("scoring_func", scoring) != scoring:
        raise config.error("scoring_func", config.get("scoring_func"), f"{scoring!r} is expected")
    renormalize = config.flag("norm_topk_prob", corrected)
    if renormalize and not corrected:
        # DeepSeek's own code then normalises and does not scale, transformers does neither.
        raise config.error("norm_topk_prob", True, "for DeepSeek-V2 only false has one meaning")
    dense = config.integer("first_k_dense_replace", 0, low=0)
    return ExpertSpec(
        count=count,
        per_token=per_token,
        inner=config.integer("moe_intermediate_size"),
        layers=tuple(layer >= dense for layer in range(num_layers)),
        sigmoid=corrected,
        renormalize=renormalize,
        shared=config.integer("n_shared_experts", 0, low=0, high=1 << 16),
        bias=False,
        gate=None,
        groups=groups,
        top_groups=top_groups,
        group_best=min(2, count // groups) if corrected else 1,
        scale=config.number("routed_scaling_factor", 1.0),
        corrected=corrected,
    )


def _groups(config: Reader, *, corrected: bool) -> tuple[int, int]:
    method = config.get("topk_method", "noaux_tc" if corrected else "greedy")
    known = ("noaux_tc",) if corrected else ("greedy", "group_limited_greedy")
    if method not in known:
        raise config.error("topk_method", method, f"supported are {', '.join(known)}")
    if method == "greedy":
        return 1, 1
    return config.integer("n_group", 1, high=1 << 16), config.integer("topk_group", 1, high=1 << 16)
