"""All that can be said of a LoRA file without its base model, from its header and its numbers. Without torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .header import Header, read_header
from .keys import Survey, more_than_lora, survey
from .numbers import change_norms, integer_problem, read_alphas, type_names, type_problem
from .strength import Strengths, adapter_config, file_in, strengths


@dataclass(frozen=True)
class Surveyed:
    """What the header and the alpha tensors of a LoRA file say about it.

    survey: its modules and layout; strengths: the scale of each module.
    """

    header: Header
    survey: Survey
    strengths: Strengths

    @property
    def path(self) -> Path:
        """The file itself, even if a folder was given."""
        return self.header.path


@dataclass(frozen=True)
class Description:
    """What a LoRA file contains, in numbers.

    dtypes: torch's names, without alphas'; ranks, scales: the different ones, sorted; norms: of weight changes, by the
    file's module names, NaN where one is not finite; not_finite: the modules with such numbers; notes: sentences on
    what was assumed and what is not plain LoRA.
    """

    file: Surveyed
    dtypes: tuple[str, ...]
    ranks: tuple[int, ...]
    scales: tuple[float, ...]
    norms: dict[str, float]
    not_finite: tuple[str, ...]
    notes: tuple[str, ...]


def look_into(path: Path) -> Surveyed:
    """Read the header and alphas of a LoRA file.

    path: the file, or a folder saved by PEFT or diffusers. Raises OSError, and ValueError saying what the file is
    instead of a LoRA or what is wrong with it.
    """
    header, found = survey_file(path)
    return with_strengths(header, found, read_alphas(header, found))


def survey_file(path: Path) -> tuple[Header, Survey]:
    """The header of a LoRA file and the modules and layout that it shows; no tensor is read.

    path: the file, or a folder saved by PEFT or diffusers. Raises OSError, and ValueError saying what the file is
    instead of a LoRA or what is wrong with it.
    """
    header = read_header(file_in(path))
    found = survey(header.shapes, header.metadata)
    if problem := type_problem(header) or integer_problem(header, found):
        raise ValueError(problem)
    return header, found


def with_strengths(header: Header, found: Survey, alphas: Mapping[str, Sequence[float]]) -> Surveyed:
    """The survey of a file with the scale of each of its modules added.

    header, found: the file's header and what `look_into` found in it. alphas: the numbers of each alpha tensor,
    by its key. Of the disk only an adapter_config.json next to the file is read. Raises OSError, and ValueError for an
    alpha that is no number or for an adapter_config.json that cannot be read.
    """
    return Surveyed(header, found, strengths(found, alphas, header.metadata, adapter_config(header.path)))


def describe(path: Path) -> Description:
    """Read a complete LoRA file, weights included, and describe it: ranks, norms, what is not finite.

    path: the file, or a folder saved by PEFT or diffusers. Raises OSError, and ValueError saying what the file is
    instead of a LoRA or what is wrong with it, such as two matrices that do not fit together.
    """
    file = look_into(path)
    found = file.survey
    if problem := next((f"{name} {why}" for name, module in found.modules.items() if (why := module.problem)), None):
        raise ValueError(problem)
    norms, not_finite = change_norms(file.header, found, file.strengths)
    return Description(
        file=file,
        dtypes=tuple(type_names(file.header, found)),
        ranks=tuple(sorted({module.rank for module in found.modules.values() if module.rank})),
        scales=tuple(sorted({round(scale, 6) for scale in file.strengths.scales.values()})),
        norms=norms,
        not_finite=not_finite,
        notes=(*([file.strengths.note] if file.strengths.note else []), *more_than_lora(found)),
    )
