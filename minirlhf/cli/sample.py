"""minirlhf sample"""

import sys
from pathlib import Path

import click

from minirlhf.cli.options import FiniteRange

COLDEST = 1e-3  # logits over less would overflow; 0 means greedy


@click.command("sample")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("prompt", required=False, metavar="[PROMPT|-]")
@click.option("-n", "count", type=click.IntRange(1, 10000), default=1, show_default=True, help="Completions.")
@click.option("--from", "side", type=click.Choice(["policy", "reference"]), default="policy", show_default=True)
@click.option("--temperature", type=FiniteRange(0), help="0 = greedy; left out: the run's own.")
@click.option("--top-k", type=click.IntRange(0), default=0, help="Only the K most likely tokens; 0 = all.")
@click.option("--top-p", type=FiniteRange(0, 1, min_open=True), default=1.0, help="Only the nucleus of mass P.")
@click.option("--min-p", type=FiniteRange(0, 1), default=0.0, help="Only tokens over P times the most likely.")
@click.option("--max-new-tokens", type=click.IntRange(1), help="Longest completion; left out: the run's own.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--device", metavar="D", help="auto, cpu, cuda or cuda:N.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a completion.")
def command(
    run: Path,
    prompt: str | None,
    count: int,
    side: str,
    temperature: float | None,
    top_k: int,
    top_p: float,
    min_p: float,
    max_new_tokens: int | None,
    seed: int,
    device: str | None,
    as_json: bool,
) -> None:
    """Let the policy (or the reference) of a finished RUN continue PROMPT; - reads it from standard input.

    Without PROMPT it starts from nothing. The cuts (top-k, top-p, min-p) exist only here: a run never uses them.
    """
    from minirlhf.cli.options import resolve
    from minirlhf.saved import config_file

    if temperature is not None and 0 < temperature < COLDEST:
        raise click.BadParameter(f"{temperature} is below {COLDEST}; 0 is greedy", param_hint="--temperature")
    text = read_stdin() if prompt == "-" else prompt or ""
    config, _ = resolve(preset=config_file(run), rewards=(), sets=(), plugins=(), device=device)

    from dataclasses import replace

    from minirlhf.cli.show import printable
    from minirlhf.errors import InputError
    from minirlhf.generate import PromptBatch, generate
    from minirlhf.run import set_up
    from minirlhf.saved import open_run
    from minirlhf.store.metrics import json_line
    from minirlhf.streams import generator

    saved = open_run(run, config, set_up(config))
    policy = saved.policy if side == "policy" else saved.reference.policy
    sampler = replace(policy.sampler, top_k=top_k, top_p=top_p, min_p=min_p)
    if temperature is not None:
        sampler = replace(sampler, temperature=temperature)
    batch = PromptBatch.build([text], [{}], saved.tokenizer, responses=count, device=saved.device)
    room = config.model.max_positions - batch.ids.shape[1]
    if room < 1:
        raise InputError(f"the prompt has {batch.ids.shape[1]} tokens, the model reads {config.model.max_positions}")
    rollout = generate(
        policy,
        batch,
        saved.tokenizer,
        max_new_tokens=min(room, max_new_tokens or config.sampler.max_new_tokens),
        generator=generator(seed, "sample", 0),
        sampler=sampler,
    )
    for completion, ended in zip(rollout.completions, rollout.terminated.tolist(), strict=True):
        if as_json:
            click.echo(json_line({"prompt": text, "completion": completion, "from": side, "terminated": ended}))
        else:
            click.echo(printable(text + completion))


def read_stdin() -> str:
    """Standard input as UTF-8 text, without the line ends behind it."""
    from minirlhf.errors import InputError

    try:
        return sys.stdin.buffer.read().decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as fault:
        raise InputError(f"the prompt is not UTF-8 (byte {fault.start + 1})", "standard input") from None
