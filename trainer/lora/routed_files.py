"""LoRA files whose adapters act in regions of their own: what calls each of them, and what of them can be routed.

Layers that act on no tokens, as those of CLIP, cannot be limited to a region; they are left out and reported.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trainer.common.problems import Problem, Problems, raise_if_any
from trainer.lora.file import LoraFile
from trainer.lora_file.apart import Part, parts_of
from trainer.lora_file.modules import LoraModule
from trainer.routing.adapters import stream_of
from trainer.routing.words import Trigger, usual_class_words


@dataclass(frozen=True)
class RoutedLora:
    """A LoRA that acts where its triggers' words attend. modules: those of the transformer, by canonical names."""

    name: str
    triggers: tuple[Trigger, ...]
    modules: Mapping[str, LoraModule]


def read_parts(files: Sequence[tuple[str, LoraFile]], class_words: Mapping[str, str]) -> list[tuple[str, Part]]:
    """The adapters in LoRA files, each with the file's name, with these class words in place of the files'.

    files: path and LoRA of each file; class_words: by trigger. Raises `Problems` for an adapter without a trigger, for
    a trigger of several adapters and for class words of an unknown trigger.
    """
    parts = [(name, part) for name, lora in files for part in _parts(name, lora)]
    hint = "nothing in a prompt would call it; train it with class_tokens"
    problems = [Problem(name, f"{part.title} names no trigger", hint) for name, part in parts if not part.triggers]
    triggers = [(trigger, name) for name, part in parts for trigger in part.triggers]
    known = [trigger for trigger, _ in triggers]
    again = [(trigger, name) for index, (trigger, name) in enumerate(triggers) if trigger in known[:index]]
    hint = "it must be clear which LoRA a trigger calls"
    problems += [Problem(name, f"its trigger {trigger!r} is another LoRA's, too", hint) for trigger, name in again]
    hint = f"the triggers are {', '.join(map(repr, known))}"
    unknown = [trigger for trigger in class_words if trigger not in known]
    problems += [Problem(f"--class_words={trigger}", "is no trigger of the LoRAs", hint) for trigger in unknown]
    raise_if_any(problems)
    return [(name, _with_class_words(part, class_words)) for name, part in parts]


def _parts(name: str, lora: LoraFile) -> list[Part]:
    try:
        return parts_of(Path(name).stem, lora.modules, lora.metadata)
    except ValueError as error:
        raise Problems([Problem(name, str(error))]) from error


def _with_class_words(part: Part, class_words: Mapping[str, str]) -> Part:
    return replace(part, triggers={each: class_words.get(each, own) for each, own in part.triggers.items()})


def route_loras(
    files: Sequence[tuple[str, LoraFile, float]], class_words: Mapping[str, str]
) -> tuple[list[RoutedLora], list[str]]:
    """The adapters of LoRA files, to be routed, and sentences on what of them is left out.

    files: path, LoRA and weight of each file; class_words: for a trigger, the words for which the base model draws its
    kind of thing, if not those of the file or what follows the trigger's first word. Raises `Problems` as `read_parts`
    does, and for a trigger without class words.
    """
    weights = {name: weight for name, _, weight in files}
    routed, problems, notes = [], [], []
    for name, part in read_parts([(name, lora) for name, lora, _ in files], class_words):
        triggers = [Trigger(each, own or usual_class_words(each)) for each, own in part.triggers.items()]
        for nameless in (each.phrase for each in triggers if not each.class_words):
            hint = f'for example --class_words "{nameless}=a toy"'
            problems.append(Problem(name, f"what the base model calls {nameless!r} is not known", hint))
        acting = {layer: each for layer, each in part.modules.items() if stream_of(layer.removeprefix("transformer."))}
        if left_out := len(part.modules) - len(acting):
            notes.append(
                f"{name}: {left_out} layers act on no tokens, as those of CLIP, and have no effect with --route"
            )
        weighted = {layer: replace(each, alpha=each.alpha * weights[name]) for layer, each in acting.items()}
        routed.append(RoutedLora(part.title, tuple(triggers), weighted))
    raise_if_any(problems)
    return routed, notes
