"""What Octavo reads from strangers, as functions of any bytes.

Each target lets out only what must not happen: an exception that the reader does not promise, a message that
repeats pages of its input, an accepted value that breaks what the reader promises of it. fuzz_main.py runs
them under atheris, tests/python/fuzz over their corpora.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_values import Bytes

from octavo.engine.inputs import InputProcessor, as_prompt_list
from octavo.errors import ConfigError, ModelError, WeightsError
from octavo.hf_config import ARCHITECTURES, load_model_spec
from octavo.kv_events import subscriber, wire
from octavo.prompts import KvRange, KvRetention
from octavo.sampling_params import SamplingParams
from octavo.simulate.traffic import read_trace
from octavo.text.chat_template import MAX_OUTPUT_CHARS, ChatTemplate
from octavo.text.tokenizer import load_tokenizer
from octavo.weights.safetensors_file import SafetensorsFile

MAX_MESSAGE = 4000  # characters; a path, the names of all architectures and a value's beginning
_INT32_MAX = 2**31 - 1


class Refused(Exception):
    """The reader refused its input as it promises to."""


@contextmanager
def _promised(*kinds: type[Exception]) -> Iterator[None]:
    try:
        yield
    except kinds as error:
        message = str(error)
        assert message, "a refusal says why"
        assert len(message) <= MAX_MESSAGE, f"a refusal of {len(message)} characters: {message[:200]}"
        raise Refused(message) from error


@cache
def _folder() -> Path:
    return Path(_directory().name)


@cache
def _directory() -> tempfile.TemporaryDirectory[str]:
    # In memory where there is such a folder: overwriting a file on a disk costs ten times the reading of it.
    memory = Path("/dev/shm")
    return tempfile.TemporaryDirectory(prefix="octavo-fuzz-", dir=memory if memory.is_dir() else None)


def safetensors(data: bytes) -> None:
    """A file; or one that begins with `{`: a header up to the first NUL, then the tensors' bytes."""
    if data[:1] == b"{":
        header, _, tensors = data.partition(b"\0")
        data = len(header).to_bytes(8, "little") + header + tensors
    path = _folder() / "model.safetensors"
    path.write_bytes(data)
    with _promised(WeightsError), SafetensorsFile(path) as file:
        end = 0
        for info in sorted(file.tensors.values(), key=lambda info: info.begin):
            assert 8 <= info.begin <= info.end <= len(data), "a tensor outside of its file"
            assert len(file.data(info)) == info.end - info.begin
            assert info.begin >= end, "two tensors share bytes"
            end = info.end
        assert not file.tensors or end == len(data), "bytes of no tensor"


_BASE_CONFIG: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 256,
    "head_dim": 16,
    "sliding_window": 32,
    "mamba_n_heads": 8,
    "mamba_n_groups": 1,
    "mamba_d_state": 16,
    "mamba_expand": 2,
    "attn_layer_indices": [1, 3],
    "layer_types": ["full_attention", "sliding_attention", "full_attention", "sliding_attention"],
}
_OTHER_KEYS = """
    architectures attention_bias attention_chunk_size attention_multiplier bos_token_id
    decoder_sparse_step dtype embedding_multiplier eos_token_id attn_logit_softcapping
    final_logit_softcapping floor_scale hidden_act hidden_activation logits_scaling mamba_conv_bias
    mamba_d_conv mamba_d_head mamba_proj_bias max_window_layers mlp_bias mlp_only_layers
    moe_intermediate_size moe_layers no_rope_layer_interval no_rope_layers norm_topk_prob num_experts
    num_experts_per_tok num_local_experts original_max_position_embeddings partial_rotary_factor
    position_embedding_type quantization_config query_pre_attn_scalar residual_multiplier rms_norm_eps
    rope_local_base_freq rope_parameters rope_scaling rope_theta shared_intermediate_size
    sliding_window_pattern swiglu_alpha swiglu_limit text_config tie_word_embeddings time_step_limit
    torch_dtype use_bidirectional_attention use_qk_norm use_sliding_window attn_scale
    attn_temperature_tuning interleave_moe_layer_step
"""
_CONFIG_KEYS = (*_BASE_CONFIG, *_OTHER_KEYS.split())
_ROPE_KEYS = (
    *"rope_type type factor rope_theta low_freq_factor high_freq_factor attention_factor beta_fast".split(),
    *"beta_slow mscale mscale_all_dim truncate original_max_position_embeddings".split(),
    *"partial_rotary_factor full_attention sliding_attention".split(),
)
_ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn")
_TYPES = ("full_attention", "sliding_attention", "chunked_attention", "mamba", "linear_attention")


def _rope(decisions: Bytes) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": decisions.choose(_ROPE_KINDS), "factor": 2.0}
    while decisions and not decisions.one_in(4):
        rope[decisions.choose(_ROPE_KEYS)] = decisions.json(2)
    return rope


def _make_config(decisions: Bytes) -> dict[str, Any]:
    """A known architecture's config with some values replaced."""
    config = dict(_BASE_CONFIG)
    config["architectures"] = [decisions.choose(tuple(ARCHITECTURES))]
    while decisions:
        key = decisions.choose(_CONFIG_KEYS)
        if key in ("rope_scaling", "rope_parameters") and not decisions.one_in(4):
            config[key] = _rope(decisions)
        elif key == "layer_types" and not decisions.one_in(4):
            config[key] = [decisions.choose(_TYPES) for _ in range(4)]
        elif decisions.one_in(8):
            config.pop(key, None)
        else:
            config[key] = decisions.json(2)
    return config


def config(data: bytes) -> None:
    """config.json, after a NUL generation_config.json; what begins otherwise is decisions."""
    folder = _folder() / "model"
    folder.mkdir(exist_ok=True)
    first, _, second = data.partition(b"\0")
    if data[:1] not in b"{[":
        first, second = json.dumps(_make_config(Bytes(data))).encode("utf-8", "surrogatepass"), b"{}"
    (folder / "config.json").write_bytes(first)
    (folder / "generation_config.json").write_bytes(second or b"{}")
    with _promised(ModelError):
        spec = load_model_spec(folder)
    assert len(spec.layer_windows) == spec.num_layers
    assert spec.num_parameters > 0
    assert 1 <= spec.default_length <= spec.context_limit <= _INT32_MAX, f"{spec.context_limit} positions"
    assert all(math.isfinite(value) for value in _floats(vars(spec)))
    assert all(0 <= token < spec.vocab_size for token in spec.eos_token_ids)
    for layer in range(spec.num_layers):
        rope = spec.rope_of(layer)
        assert rope is None or 0 < rope.rotary_dim <= spec.head_dim
    spec.name_of("model.layers.0.self_attn.q_proj.weight")


def _floats(value: Any) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            if key != "raw":
                yield from _floats(item)
    elif isinstance(value, tuple):
        for item in value:
            yield from _floats(item)
    elif dataclasses.is_dataclass(value):
        yield from _floats(vars(value))


_TOKENIZER: dict[str, Any] = {
    "version": "1.0",
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False},
    "post_processor": None,
    "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "Ġ": 3, "<0x0A>": 4}, "merges": [["a", "b"]]},
}
_DECODERS = ("ByteLevel", "ByteFallback", "Fuse", "Strip", "Replace", "Metaspace", "Sequence", "WordPiece")
_TOKENIZER_KEYS = (
    *"added_tokens_decoder additional_special_tokens extra_special_tokens bos_token eos_token".split(),
    *"pad_token unk_token own_token tokenizer_class chat_template".split(),
)


def _decoder(decisions: Bytes, depth: int = 2) -> Any:
    kind = decisions.choose(_DECODERS)
    stage: dict[str, Any] = {"type": kind}
    if kind == "Strip":
        stage.update(content=" ", start=decisions.number(), stop=decisions.below(2))
    elif kind == "Replace":
        stage.update(pattern={decisions.choose(("String", "Regex")): decisions.text()}, content="_")
    elif kind == "Metaspace":
        stage.update(replacement="_", prepend_scheme=decisions.choose(("always", "never", "first")))
    elif kind == "ByteLevel":
        stage.update(_TOKENIZER["decoder"])
    elif kind == "WordPiece":
        stage.update(prefix="##", cleanup=True)
    elif kind == "Sequence":
        stage["decoders"] = [_decoder(decisions, depth - 1) for _ in range(decisions.below(4)) if depth]
    return stage


def _token(decisions: Bytes) -> Any:
    if decisions.one_in(3):
        return decisions.json(2)
    content = decisions.choose(("<s>", "a", "ab", "<|im_end|>", "", "\ud800", " "))
    return content if decisions.one_in(2) else {"content": content, "lstrip": decisions.json(0)}


def _tokenizer_config(decisions: Bytes) -> dict[str, Any]:
    values: dict[str, Any] = {}
    while decisions and not decisions.one_in(6):
        key = decisions.choose(_TOKENIZER_KEYS)
        if key == "added_tokens_decoder" and not decisions.one_in(4):
            values[key] = {str(decisions.below(9)): _token(decisions) for _ in range(decisions.below(4))}
        elif key.endswith("_tokens") and not decisions.one_in(4):
            values[key] = [_token(decisions) for _ in range(decisions.below(4))]
        elif key.endswith("_token"):
            values[key] = _token(decisions)
        else:
            values[key] = decisions.json(2)
    return values


def tokenizer(data: bytes) -> None:
    """The JSON files beside a small tokenizer.json. One that begins with `{` or `[` stands for itself."""
    folder = _folder() / "tokenizer"
    folder.mkdir(exist_ok=True)
    backend = dict(_TOKENIZER)
    texts = [b"{}"] * 3
    if data[:1] in (b"{", b"["):
        texts = [part or b"{}" for part in (*data.split(b"\0", 2), b"", b"")[:3]]
    else:
        decisions = Bytes(data)
        if decisions.one_in(2):
            backend["decoder"] = _decoder(decisions)
        made = (_tokenizer_config(decisions), _tokenizer_config(decisions), decisions.json())
        texts = [json.dumps(part).encode() for part in made]
    (folder / "tokenizer.json").write_text(json.dumps(backend), encoding="utf-8")
    for name, text in zip(("tokenizer_config.json", "special_tokens_map.json", "chat_template.json"), texts):
        (folder / name).write_bytes(text)
    with _promised(ValueError):
        try:
            made_tokenizer = load_tokenizer(folder)
        except ValueError as error:
            assert str(folder) in str(error), f"a refusal names its file: {type(error).__name__}: {error}"
            raise
    ids = made_tokenizer.encode("a b ab\n<s>")
    assert all(0 <= token < len(made_tokenizer) for token in ids)
    made_tokenizer.decode(ids)
    for token in range(len(made_tokenizer) + 1):
        piece, first = made_tokenizer.whole_piece(token), made_tokenizer.first_piece(token)
        assert isinstance(piece, (str, bytes)) and isinstance(first, (str, bytes))
        made_tokenizer.token_bytes(token)
    template = made_tokenizer.chat_template
    assert template is None or isinstance(template, str)


_TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m['content'] | trim }}"
_TEMPLATE += "{% for c in m.tool_calls or [] %}"
_TEMPLATE += "{{ c.function.name }}({{ c.function.arguments | tojson }}){% endfor %}\n{% endfor %}"
_TEMPLATE += "{{ tools | tojson if tools }}{{ '<|assistant|>' if add_generation_prompt }}"
_PARTS_TEMPLATE = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
_SECONDS = 1.0


def _message(decisions: Bytes) -> Any:
    if decisions.one_in(8):
        return decisions.json()
    message: dict[Any, Any] = {"role": decisions.choose(("user", "assistant", "tool", "")), "content": "hi"}
    while decisions and decisions.one_in(2):
        kind = decisions.below(4)
        if kind == 0:
            message["content"] = [
                {"type": decisions.choose(("text", "image")), "text": decisions.text()},
                decisions.json(1),
            ][: decisions.below(3)]
        elif kind == 1:
            arguments = decisions.choose(('{"a": 1}', "[" * 3000, "{}", "", "1e999", "NaN", decisions.text()))
            message["tool_calls"] = [{"function": {"name": "f", "arguments": arguments}}]
        else:
            message[decisions.choose(("content", "tool_calls", "name", "role"))] = decisions.json()
    return message


def chat_template(data: bytes) -> None:
    """Decisions make a conversation for a usual template; what follows a NUL is the template, if anything."""
    first, _, source = data.partition(b"\0")
    decisions = Bytes(first)
    usual = _PARTS_TEMPLATE if decisions.one_in(3) else _TEMPLATE
    messages = [_message(decisions) for _ in range(decisions.below(4))]
    options = {"tools": decisions.json() if decisions.one_in(3) else None}
    variables = {"x": decisions.json(), "enable_thinking": decisions.one_in(2)}
    last = decisions.one_in(3)
    with _promised(ValueError):
        template = ChatTemplate(source.decode("utf-8", "surrogateescape") or usual, max_seconds=_SECONDS)
        text = template.render(
            messages,
            **options,
            add_generation_prompt=not last,
            continue_final_message=last,
            variables=variables,
        )
    assert isinstance(text, str) and len(text) <= MAX_OUTPUT_CHARS


def traffic(data: bytes) -> None:
    """A JSONL trace."""
    path = _folder() / "trace.jsonl"
    path.write_bytes(data)
    with _promised(ConfigError):
        requests = read_trace(str(path), time_scale=0.5)
    assert len(requests) >= 1
    assert np.isfinite(requests["arrival"]).all() and (np.diff(requests["arrival"]) >= 0).all()
    assert requests["arrival"][0] == 0
    for name in ("input_len", "prefix_len"):
        assert (requests[name] >= 0).all(), name
    assert (requests["output_len"] >= 1).all()
    assert (requests["input_len"].astype(np.int64) + requests["prefix_len"] >= 1).all()


def kv_events(data: bytes) -> None:
    """Frames of one message, separated by the bytes "--"."""
    index = subscriber.CacheIndex()
    with _promised(ValueError):
        _, payload = subscriber.read_frames(data.split(b"--"))
        batch = wire.decode(payload)
        again = wire.decode(wire.encode(batch))
        # NaN equals nothing, so times are compared as text.
        assert (str(again.ts), again.events) == (str(batch.ts), batch.events), "a batch survives its way"
        assert again.data_parallel_rank == batch.data_parallel_rank
        index.apply(batch)
    for held in index.groups.values():
        for block in held.values():
            assert block.token_ids, "a block holds tokens"


_PARAMS = tuple(field.name for field in dataclasses.fields(SamplingParams) if field.name != "output_kind")


def _prompt(decisions: Bytes) -> Any:
    if decisions.one_in(3):
        return decisions.json()
    ids = [decisions.number() for _ in range(decisions.below(6))]
    prompt: dict[str, Any] = {"prompt_token_ids": ids}
    if decisions.one_in(3):
        prompt[decisions.choose(("cache_salt", "prompt", "other", "kv_retention"))] = decisions.json()
    if decisions.one_in(4):
        values = {"begin": decisions.number(), "end": decisions.json(1), "priority": decisions.number()}
        ranges = [KvRange(**values)] * decisions.below(3)
        prompt["kv_retention"] = KvRetention(ranges=ranges, decode_duration_ms=decisions.json(1))
    return prompt if decisions.one_in(2) else ids


def inputs(data: bytes) -> None:
    """Prompts and sampling parameters, as JSON {"prompts", "params"} or as decisions."""
    with _promised(ValueError, TypeError):
        if data[:1] == b"{":
            try:
                given = json.loads(data)
            except (ValueError, RecursionError):
                return
            prompts, values = given.get("prompts"), given.get("params")
            values = values if isinstance(values, dict) else {}
        else:
            decisions = Bytes(data)
            prompts = [_prompt(decisions) for _ in range(decisions.below(3))]
            values = {}
            while decisions:
                values[decisions.choose(_PARAMS)] = decisions.json(2)
        params = SamplingParams(**values)
        listed = as_prompt_list(prompts)
        processor = InputProcessor(None, max_model_len=64, vocab_size=100)
        prepared = processor.prepare(listed, [params] * len(listed))
    assert 0 <= params.temperature <= 100 and 0 < params.top_p <= 1 and 1 <= params.n <= 128
    assert params.max_tokens is None or 1 <= params.min_tokens + 1 <= params.max_tokens + 1
    for prompt in prepared:
        assert prompt.token_ids.dtype == np.int32 and 1 <= len(prompt.token_ids) < 64
        assert ((prompt.token_ids >= 0) & (prompt.token_ids < 100)).all()


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (safetensors, config, tokenizer, chat_template, traffic, kv_events, inputs)
}


def run(name: str, data: bytes) -> bool:
    """Runs one input; whether it was accepted."""
    try:
        TARGETS[name](data)
    except Refused:
        return False
    return True
