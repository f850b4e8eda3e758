"""Prompts written for other programs: what would be sampled as plain text, and what to write here."""

import re
from collections.abc import Iterator, Sequence

from trainer.common.problems import Problem
from trainer.sampling.prompts import SamplePrompt, idle_negatives

SYNTAX = (  # what other programs act on, and what to do here
    (
        re.compile(r"<(?:lora|lyco|hypernet|segment|random|wildcard)[:=][^>]*>", re.I),
        "leave it out: LoRAs are given by flags",
    ),
    (re.compile(r"\{[^{}]*\|[^{}]*\}|__[\w/-]+__"), "write a prompt for each choice"),
    (
        re.compile(r"\([^()]*[^\W\d][^()]*:\s*(?:\d(?:\.\d+)?|\.\d+)\)|\[[^\[\]]+:[^\[\]]*\d\]"),
        "leave the weight out: words have none here",
    ),
    (re.compile(r'^(["“]).*["”]$'), "leave the quotation marks out"),
)


def prompt_notices(prompts: Sequence[SamplePrompt]) -> list[Problem]:
    """Notices about prompts that do not do what they seem to: negatives without effect, another program's syntax."""
    return [*idle_negatives(prompts), *_read_as_text(prompts)]


def _read_as_text(prompts: Sequence[SamplePrompt]) -> Iterator[Problem]:
    """One notice for each kind of syntax, at the first prompt that has it."""
    for pattern, hint in SYNTAX:
        found = [(prompt, match[0]) for prompt in prompts if (match := pattern.search(prompt.prompt))]
        if found:
            (prompt, text), more = found[0], f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            yield Problem(prompt.where, f"{text} is read as text{more}", hint)
