"""`octavo generate`: complete prompts from the command line, a file or stdin."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.cli.engine import (
    add_engine_flags,
    add_model,
    add_sampling_flags,
    make_llm,
    make_sampling_params,
    model_sampling,
    raise_failed,
)
from octavo.cli.errors import EXIT_INTERRUPTED, CommandError, UsageError
from octavo.cli.stream import Answer, printable, stream
from octavo.errors import file_failure

if TYPE_CHECKING:
    from octavo import LLM, RequestOutput, SamplingParams

DESCRIPTION = """\
Complete prompts. One prompt streams its text to stdout; several run as one batch and print in order.

  octavo generate tiny "The KV cache" --max-tokens 40
  octavo generate ./model --prompts-file prompts.txt --json --temperature 0
  echo "Once upon a time" | octavo generate ./model
  octavo generate ./whisper --audio speech.wav"""

# What a model of speech does unless a flag or its generation_config.json says otherwise: it writes down all.
SPEECH_SAMPLING = {"temperature": 0.0, "max_tokens": None}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `octavo generate`."""
    add_model(parser)
    parser.add_argument("prompts", metavar="PROMPT", nargs="*", help="text to complete; none: read stdin")
    parser.add_argument(
        "--prompts-file",
        metavar="FILE",
        help="one prompt a line; in a .jsonl file each line is a JSON string or an object with "
        '"prompt" or "prompt_token_ids"',
    )
    parser.add_argument(
        "--audio",
        metavar="FILE",
        action="append",
        default=[],
        help="a PCM WAV file for a model that hears, several times for several; with at most one PROMPT, "
        "which begins the transcript of each",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a line for each prompt")
    add_sampling_flags(parser)
    add_engine_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Reads the prompts, completes them and prints the texts."""
    make_sampling_params(args)
    prompts = read_prompts(args)
    speech = SPEECH_SAMPLING if args.audio else {}
    params = make_sampling_params(args, **{**speech, **model_sampling(args.model)})
    llm = make_llm(args)
    if len(prompts) == 1 and params.n == 1 and not args.json:
        return run_streamed(llm, prompts[0], params)
    outputs = llm.generate(prompts, params, use_tqdm=sys.stderr.isatty())
    for index, output in enumerate(outputs):
        if args.json:
            print(json.dumps(as_json(index, output), ensure_ascii=False))
        else:
            print_completions(index, output, titled=len(outputs) > 1 or len(output.outputs) > 1)
    raise_failed(outputs)
    return 0


def run_streamed(llm: LLM, prompt: Any, params: SamplingParams) -> int:
    """Prints one completion while it is made."""
    from octavo.sampling_params import RequestOutputKind

    params.output_kind = RequestOutputKind.DELTA
    answer = Answer()
    for text in stream(llm, prompt, params, answer):
        print(printable(text) if sys.stdout.isatty() else text, end="", flush=True)
    print()
    return EXIT_INTERRUPTED if answer.interrupted else 0


def read_prompts(args: argparse.Namespace) -> list[Any]:
    """The prompts of the command line and the file; stdin where there is neither. Raises on an empty list."""
    if args.audio:
        return read_audio(args)
    prompts: list[Any] = list(args.prompts)
    if args.prompts_file:
        prompts += read_file(args.prompts_file)
    elif not prompts:
        if sys.stdin.isatty():
            raise UsageError("no prompt; give PROMPT, --prompts-file FILE, or text on stdin")
        prompts = [sys.stdin.read().removesuffix("\n")]
    if not prompts or prompts == [""]:
        raise UsageError("no prompt; the input is empty")
    return prompts


def read_audio(args: argparse.Namespace) -> list[Any]:
    """One prompt for each audio file, with the text of the command line in front where there is any."""
    from octavo.media.wav import read_wav

    if args.prompts_file or len(args.prompts) > 1:
        raise UsageError("--audio goes with at most one PROMPT, which begins the transcript of each file")
    prompts = []
    for path in args.audio:
        try:
            media = {"audio": read_wav(Path(path))}
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None)
            raise CommandError(f"cannot read {path}: {reason}" if reason else str(error)) from error
        text = {"prompt": args.prompts[0]} if args.prompts else {}
        prompts.append({**text, "multi_modal_data": media})
    return prompts


def read_file(path: str) -> list[Any]:
    """The prompts of a text or JSON Lines file; empty lines are left out."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise CommandError(file_failure(path, error)) from error
    except UnicodeDecodeError as error:
        raise CommandError(f"{path} cannot be read: {error}") from error
    if not path.endswith(".jsonl"):
        return [line for line in lines if line]
    return [parse_line(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]


def parse_line(path: str, number: int, line: str) -> Any:
    """One line of a JSON Lines file as a prompt."""
    try:
        value = json.loads(line)
    except ValueError as error:
        raise CommandError(f"{path}, line {number}: not JSON: {error}") from error
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and ("prompt" in value or "prompt_token_ids" in value):
        return {name: value[name] for name in ("prompt", "prompt_token_ids") if name in value}
    raise CommandError(
        f'{path}, line {number}: use a JSON string or {{"prompt": ...}} or {{"prompt_token_ids": ...}}'
    )


def print_completions(index: int, output: RequestOutput, *, titled: bool) -> None:
    """The texts of one prompt, under the prompt's first words where there are several."""
    if titled:
        prompt = " ".join((output.prompt or f"{len(output.prompt_token_ids or ())} token ids").split())
        print(f"{'' if index == 0 else chr(10)}[{index}] {prompt[:60]}{'...' if len(prompt) > 60 else ''}")
    for completion in output.outputs:
        print(printable(completion.text) if sys.stdout.isatty() else completion.text)


def as_json(index: int, output: RequestOutput) -> dict[str, Any]:
    """One line of --json: the prompt and its completions."""
    return {
        "index": index,
        "prompt": output.prompt,
        "prompt_tokens": len(output.prompt_token_ids or ()),
        "cached_tokens": output.num_cached_tokens or 0,
        "outputs": [
            {
                "text": completion.text,
                "token_ids": list(completion.token_ids),
                "finish_reason": completion.finish_reason,
                "stop_reason": completion.stop_reason,
                "cumulative_logprob": completion.cumulative_logprob,
                "logprobs": logprobs_as_json(completion.logprobs),
            }
            for completion in output.outputs
        ],
    }


def logprobs_as_json(logprobs: Any) -> list[list[dict[str, Any]]] | None:
    """For each token the candidates, the sampled one first."""
    if logprobs is None:
        return None
    return [
        [
            {"token_id": token, "logprob": entry.logprob, "rank": entry.rank, "token": entry.decoded_token}
            for token, entry in candidates.items()
        ]
        for candidates in logprobs
    ]
