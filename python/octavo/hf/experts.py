"""A mixture of experts in config.json."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.hf.reader import Reader

_COUNTS = ("num_local_experts", "num_experts")  # one means the other


@dataclass(frozen=True)
class ExpertRule:
    """How an architecture spells and uses its experts."""

    inner_key: str = "intermediate_size"  # width of one expert
    dense_key: str = "intermediate_size"  # width of the MLP in layers without experts
    step_key: str = ""  # every so many layers have experts; empty: all of them
    sigmoid: bool = False  # weights are sigmoids of the router's logits, not their softmax
    renormalize: bool | None = True  # weights of the chosen sum to one; None: as norm_topk_prob says
    shared: bool = False  # one more expert of the same width, for every token
    bias: bool = False  # of the router and of each expert
    clamped: bool = False  # the gate has swiglu_alpha and swiglu_limit
    defaults_count: int = 8
    defaults_per_token: int = 2


@dataclass(frozen=True, kw_only=True)
class ExpertSpec:
    """The experts of a model."""

    count: int
    per_token: int
    inner: int
    layers: tuple[bool, ...]  # which layers have experts
    sigmoid: bool
    renormalize: bool
    shared: int  # experts for every token, as one of their widths together
    bias: bool
    gate: tuple[float, float] | None  # (alpha, limit) of a clamped gate; None: the activation's
    groups: int = 1  # of neighbouring experts, of which top_groups are chosen from
    top_groups: int = 1
    group_best: int = 1  # how many of a group's scores speak for it
    scale: float = 1.0  # of all weights
    corrected: bool = False  # a bias of each expert that the choice sees, not the weights

    def parameters(self, hidden: int) -> int:
        """Elements of one layer's router and experts."""
        router = self.count * (hidden + self.bias + self.corrected)
        biases = self.count * (2 * self.inner + hidden) * self.bias
        return router + biases + 3 * hidden * self.inner * (self.count + self.shared)

    def activations(self, hidden: int) -> int:
        """Elements that one token holds at once: its copies, gate and up, their product, what comes back."""
        return self.per_token * (2 * hidden + 3 * self.inner) + 3 * self.inner * self.shared


def experts(config: Reader, rule: ExpertRule, num_layers: int) -> ExpertSpec:
    """Read the experts of a model whose architecture has them."""
    key = next((key for key in _COUNTS if config.get(key) is not None), _COUNTS[0])
    count = config.integer(key, rule.defaults_count, high=1 << 16)
    per_token = config.integer("num_experts_per_tok", rule.defaults_per_token, high=1 << 16)
    if per_token > count:
        raise config.error("num_experts_per_tok", per_token, f"at most {key}={count} is expected")
    renormalize = rule.renormalize
    return ExpertSpec(
        count=count,
        per_token=per_token,
        inner=config.integer(rule.inner_key),
        layers=_layers(config, rule, num_layers),
        sigmoid=rule.sigmoid,
        renormalize=config.flag("norm_topk_prob") if renormalize is None else renormalize,
        shared=int(rule.shared),
        bias=rule.bias,
        gate=_gate(config) if rule.clamped else None,
    )


def _gate(config: Reader) -> tuple[float, float]:
    return config.number("swiglu_alpha", 1.702), config.number("swiglu_limit", 7.0)


def _layers(config: Reader, rule: ExpertRule, num_layers: int) -> tuple[bool, ...]:
    """`moe_layers` names them, else every step-th; `mlp_only_layers` have none."""
    step = config.integer(rule.step_key, 1, high=1 << 16) if rule.step_key else 1
    chosen = {layer for layer in range(num_layers) if (layer + 1) % step == 0}
    if rule.step_key:
        chosen = _named(config, "moe_layers", chosen, num_layers)
    dense = _named(config, "mlp_only_layers", set(), num_layers) if rule.step_key else set()
    return tuple(layer in chosen and layer not in dense for layer in range(num_layers))


def _named(config: Reader, key: str, default: set[int], num_layers: int) -> set[int]:
    layers = config.get(key, list(default))
    known = isinstance(layers, list) and all(
        isinstance(layer, int) and not isinstance(layer, bool) and 0 <= layer < num_layers for layer in layers
    )
    if not known:
        raise config.error(key, layers, f"a list of layers below num_hidden_layers={num_layers} is expected")
    return set(layers)
