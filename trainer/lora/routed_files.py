"""LoRA files whose adapters act in regions of their own: what calls each of them, and what of them can be routed.

Layers that act on no tokens, as those of CLIP, cannot be limited to a region; they are left out and reported.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trainer.common.problems import Problem, Problems, raise_if_any
from trainer.common.text import counted
from trainer.lora.file import LoraFile
from trainer.lora_file.apart import Part, parts_of
from trainer.lora_file.modules import LoraModule
from trainer.routing.adapters import stream_of
from trainer.routing.triggers import Mistake, Trigger, read_triggers, without_class_words


@dataclass(frozen=True)
class RoutedLora:
    """A LoRA that acts where its triggers' words attend. modules: those of the transformer, by canonical names."""

    name: str
    triggers: tuple[Trigger, ...]
    modules: Mapping[str, LoraModule]


def read_parts(files: Sequence[tuple[str, LoraFile]], class_words: Mapping[str, str]) -> list[tuple[str, Part]]:
    """The adapters in LoRA files, each with the file's path, with these class words in place of the file's.

    files: path and LoRA of each file; class_words: by trigger. Raises `Problems` for an adapter without a trigger, for
    a trigger of several adapters and for class words of an unknown trigger.
    """
    parts = [(path, part) for path, lora in files for part in _parts(path, lora)]
    _, mistakes = read_triggers([(path, part.triggers) for path, part in parts], class_words)
    _raise_if_any(mistakes)
    return [(path, _with_class_words(part, class_words)) for path, part in parts]


def _parts(path: str, lora: LoraFile) -> list[Part]:
    try:
        return parts_of(Path(path).stem, lora.modules, lora.metadata)
    except ValueError as error:
        raise Problems([Problem(path, str(error))]) from error


def _with_class_words(part: Part, class_words: Mapping[str, str]) -> Part:
    return replace(part, triggers={each: class_words.get(each, own) for each, own in part.triggers.items()})


def _raise_if_any(mistakes: Sequence[Mistake]) -> None:
    raise_if_any(Problem(each.where, each.what, each.hint) for each in mistakes)


def route_loras(
    files: Sequence[tuple[str, LoraFile, float]], class_words: Mapping[str, str]
) -> tuple[list[RoutedLora], list[str]]:
    """The adapters of LoRA files, to be routed, and sentences on what of them is left out.

    files: path, LoRA and weight of each file; class_words: for a trigger, the words for which the base model draws its
    kind of thing, if not those of the file or what follows the trigger's first word. Raises `Problems` as `read_parts`
    does, and for a trigger without class words.
    """
    parts = read_parts([(path, lora) for path, lora, _ in files], class_words)
    triggers, _ = read_triggers([(path, part.triggers) for path, part in parts], {})
    _raise_if_any(without_class_words([path for path, _ in parts], triggers))
    weights = {path: weight for path, _, weight in files}
    routed, notes = [], []
    for (path, part), called_by in zip(parts, triggers, strict=True):
        acting = {layer: each for layer, each in part.modules.items() if stream_of(layer.removeprefix("transformer."))}
        if left_out := len(part.modules) - len(acting):
            idle = counted(left_out, "layer that acts", "layers that act")
            notes.append(f"{path}: without effect with --route: {idle} on no tokens, as those of CLIP")
        weighted = {layer: replace(each, alpha=each.alpha * weights[path]) for layer, each in acting.items()}
        routed.append(RoutedLora(part.title, called_by, weighted))
    return routed, notes
