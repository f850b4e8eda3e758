"""What the page is told about a Concept Prompt of the open graph: its LoRAs, their concepts, how the prompt names them.

The answer is only what is known: `text` and the concepts' states are None where only a run can tell the prompt.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .concepts import Found, build_prompt
from .loaded_loras import Loaded, NodeClasses, constant
from .lora_file.concepts import Concept
from .lora_files import Names
from .nodes_prompt import LoraChoice, concepts_of

MAX_LORAS = 16


def answer(prompt: Mapping[str, Any], ids: Sequence[str], names: Names, classes: NodeClasses) -> dict[str, Any]:
    """The answer for a node, as JSON.

    prompt: the part of the graph around it, in API format; ids: its id there, several if its subgraph is used several
    times. Raises LookupError if a node is not in the prompt.
    """
    inputs = [_inputs(prompt, each) for each in ids]
    texts = {_text(constant(prompt, each.get("text", ""))) for each in inputs}
    chosen = [constant(prompt, each.get("lora_name")) for each in inputs]
    if None in chosen:
        return _as_json(Loaded(complete=False), [], None, (), [])
    choices = [LoraChoice.of(str(name), prompt, id, names, classes) for name, id in zip(chosen, ids, strict=True)]
    loaded = choices[0].loaded
    for choice in choices[1:]:
        loaded |= choice.loaded
    before, problems = _concepts(name for choice in choices for name in choice.names)
    after, more_problems = _concepts(name for choice in choices for name in choice.elsewhere)
    problems += more_problems
    text = texts.pop() if len(texts) == 1 else None
    if text is None:
        return _as_json(loaded, problems, None, [Found(concept, "missing") for concept in before + after], [])
    built = build_prompt(text, before, elsewhere=after)
    return _as_json(loaded, problems, text, built.found, list(built.unknown) if loaded.certain and not problems else [])


def _concepts(names: Iterable[str]) -> tuple[list[Concept], list[dict[str, str]]]:
    """The concepts of LoRA files, and the files that cannot be read with the reason."""
    concepts: list[Concept] = []
    problems = []
    for name in [*dict.fromkeys(names)][:MAX_LORAS]:
        try:
            concepts += concepts_of([name])
        except (ValueError, OSError) as error:
            problems.append({"lora": name, "error": str(error)})
    return concepts, problems


def _as_json(
    loaded: Loaded, problems: list[dict[str, str]], text: str | None, found: Sequence[Found], unknown: list[str]
) -> dict[str, Any]:
    return {
        "loras": loaded.names,
        "missing": loaded.missing,
        "complete": loaded.complete,
        "certain": loaded.certain,
        "problems": problems,
        "text": text,
        "found": [as_json(each, text is not None) for each in found],
        "unknown": unknown,
    }


def as_json(found: Found, is_known: bool = True) -> dict[str, Any]:
    """A concept and how a prompt names it; is_known: whether the prompt's text is."""
    state = {"state": found.state, "written": found.written} if is_known else {"state": None, "written": ""}
    return state | concept_as_json(found.concept)


def concept_as_json(concept: Concept) -> dict[str, Any]:
    return {"name": concept.name, "trigger": concept.trigger, "pictures": concept.pictures}


def _inputs(prompt: Mapping[str, Any], node_id: str) -> Mapping[str, Any]:
    node = prompt.get(node_id)
    inputs = node.get("inputs") if isinstance(node, Mapping) else None
    if not isinstance(inputs, Mapping):
        raise LookupError(f"The prompt has no node {node_id!r}.")
    return inputs


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
