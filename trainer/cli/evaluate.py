"""`python -m trainer evaluate [--lora FILE[:WEIGHT]] …`: how well the tiny FLUX follows its prompts, with and
without LoRA files, in one table.

A small classifier judges the images. It knows only the tiny FLUX's world, so no other model can be evaluated.
Every column starts from the same noise.
"""

import argparse
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from PIL import Image

from trainer.cli.convert import parse_source
from trainer.common.devices import computes_bf16, free_memory
from trainer.common.disk import output_problems
from trainer.common.files import atomic_write, write_json
from trainer.common.problems import Problem, Problems, raise_if_any
from trainer.common.process import set_up_logging
from trainer.config import TrainConfig
from trainer.config.paths import path_flag
from trainer.config.settings import MAX_SEED
from trainer.lora.convert import Source, merge
from trainer.lora.file import LoraFile, load_lora
from trainer.lora.routed_files import RoutedLora, route_loras
from trainer.models.load import load_autoencoder, load_transformer
from trainer.models.text import Tokenizers
from trainer.models.transformer import Conditioning
from trainer.models.weights import read_header
from trainer.preflight.check import check_models
from trainer.routing.words import route_prompt
from trainer.sampling.adapted import apply_lora, encode_texts
from trainer.sampling.contact_sheet import Row, contact_sheet
from trainer.sampling.evaluation import USUAL, count_prompts, draw_prompts, score_pictures
from trainer.sampling.judge import Judge, load_judge
from trainer.sampling.prompt_sets import PromptSets, load_prompts
from trainer.sampling.routed import Router
from trainer.sampling.sampler import as_image
from trainer.sampling.score_table import Column, Table

log = logging.getLogger(__name__)
MODELS = Path("models/mini")
FILES = {
    "pretrained_model_name_or_path": "flux1-mini.safetensors",
    "ae": "ae-mini.safetensors",
    "clip_l": "clip_l-mini.safetensors",
    "t5xxl": "t5-mini.safetensors",
}
JUDGE, PROMPTS = "judge.safetensors", "prompts.json"
LENGTH_KEY, USUAL_LENGTH = "max_token_length", 64  # tokens given to T5
SHEET_ROWS = 4  # of each set of prompts
Pictures = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Evaluation:
    """What the images of all columns are generated and judged with.

    config: names the files of the tiny FLUX; judge: the classifier that scores; seed: of the first image of each set of
    prompts, the next image has the next seed.
    """

    config: TrainConfig
    tokenizers: Tokenizers
    judge: Judge
    prompts: PromptSets
    seed: int
    device: torch.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of T5 and the transformer: bfloat16 where the device computes in it, else float32."""
        return torch.bfloat16 if computes_bf16(self.device) else torch.float32


@dataclass(frozen=True)
class Adapter:
    """A LoRA to evaluate (None: the base model alone), or several that each act in their own region.

    name: of its column in the table; routed: those several, in place of `lora`.
    """

    name: str
    lora: LoraFile | None = field(default=None, repr=False)
    routed: tuple[RoutedLora, ...] = field(default=(), repr=False)


def run(argv: Sequence[str]) -> int:
    """Generate and judge images for each LoRA, print the table, and write the files of --json and --sheet.

    argv: the flags after `evaluate`. Returns the exit status, 0. Raises `Problems`.
    """
    given = _parser().parse_args(argv)
    raise_if_any(_argument_problems(given))
    set_up_logging()
    sources = [parse_source(text) for text in given.lora]
    adapters = [Adapter("base"), *load_adapters(sources), *(load_together(sources) if given.route else [])]
    evaluation = load_evaluation(
        given.models, given.seed, given.prompts, given.only, prompt_file=given.prompt_file, judge=given.judge
    )
    drawn = {adapter.name: draw_column(evaluation, adapter) for adapter in adapters}
    table = make_table(evaluation, drawn)
    print(table.text())
    if given.json:
        facts = {"models": str(given.models), "lora": given.lora, "seed": given.seed, "steps": USUAL.steps}
        write_json(given.json, facts | {"guidance": USUAL.guidance} | table.as_json())
    if given.sheet:
        sheet = make_sheet(evaluation.prompts, drawn)
        atomic_write(given.sheet, lambda target: sheet.save(target, format="PNG"))
        print(given.sheet)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m trainer evaluate", description=__doc__, allow_abbrev=False)
    parser.add_argument("--lora", action="append", default=[], metavar="FILE[:WEIGHT]", help="one more column each")
    parser.add_argument(
        "--route", action="store_true", help="also all LoRAs together: added up, and each in its own region"
    )
    parser.add_argument("--models", type=Path, default=MODELS, help="folder of the tiny FLUX (%(default)s)")
    parser.add_argument("--prompts", type=int, metavar="N", help="use only N of each list, evenly spaced")
    parser.add_argument(
        "--prompt_file", type=Path, metavar="FILE", help=f"lists of prompts (default: {PROMPTS} in --models)"
    )
    parser.add_argument(
        "--judge", type=Path, metavar="FILE", help=f"judge that knows the prompts' concepts (default: {JUDGE} there)"
    )
    parser.add_argument(
        "--only", choices=("concepts", "base", "all"), default="all", help="lists of prompts (%(default)s)"
    )
    parser.add_argument("--json", type=path_flag, metavar="OUT", help="also write the table here")
    parser.add_argument("--sheet", type=path_flag, metavar="OUT.png", help="write some of the images here, labelled")
    parser.add_argument("--overwrite", action="store_true", help="replace these two files if they exist")
    parser.add_argument("--seed", type=int, default=0, help="seed of each list's first image (%(default)s)")
    return parser


def _argument_problems(given: argparse.Namespace) -> list[Problem]:
    problems = []
    if given.prompts is not None and given.prompts < 1:
        problems.append(Problem("--prompts", f"{given.prompts} prompts give no table", "give 1 or more"))
    most = MAX_SEED - 10**6  # each image has the next seed
    if not 0 <= given.seed <= most:
        problems.append(Problem("--seed", f"{given.seed} is not from 0 to {most}"))
    sources = [parse_source(text) for text in given.lora]
    if given.route and not sources:
        problems.append(Problem("--route", "no LoRA to route", "give --lora FILE, once for each concept"))
    repeated = dict.fromkeys(source.path for source in sources if sources.count(source) > 1)
    problems += [Problem(f"--lora={path}", "is given more than once") for path in repeated]
    written = [(flag, path) for flag, path in (("--json", given.json), ("--sheet", given.sheet)) if path]
    return problems + output_problems(written, given.overwrite)


def load_adapters(sources: Sequence[Source]) -> list[Adapter]:
    """Read LoRA files and apply their weights. Raises `Problems` for a file that cannot be read.

    Each is named after its file, with its path if two have the same name, and with the weight unless it is 1.
    """
    adapters = []
    for source in sources:
        namesakes = {other.path for other in sources if other.path.stem == source.path.stem}
        name, lora = str(source.path) if len(namesakes) > 1 else source.path.stem, load_lora(source.path)
        if source.weight != 1:
            name, lora = f"{name}:{source.weight:g}", merge([(name, lora, source.weight)])
        adapters.append(Adapter(name, lora))
    return adapters


def load_together(sources: Sequence[Source]) -> list[Adapter]:
    """All LoRA files at once: added up ("merged"), and each acting where its trigger's words attend ("routed").

    Raises `Problems` for a file that cannot be read or routed.
    """
    files = [(source, load_lora(source.path)) for source in sources]
    merged = merge([(source.path.stem, lora, source.weight) for source, lora in files])
    routed, notes = route_loras([(str(source.path), lora, source.weight) for source, lora in files], {})
    for note in notes:
        log.info("%s", note)
    return [Adapter("merged", merged), Adapter("routed", routed=tuple(routed))]


def load_evaluation(
    models: Path = MODELS,
    seed: int = 0,
    limit: int | None = None,
    only: str = "all",
    device: torch.device | None = None,
    prompt_file: Path | None = None,
    judge: Path | None = None,
) -> Evaluation:
    """Check the files in the folder `models`, and read the judge and the prompts. Raises `Problems`.

    seed: of the first image of each set of prompts; limit: number of prompts of each set (None: all); only: which sets:
    "concepts", "base" or "all"; device: None for the GPU if there is one; prompt_file, judge: None for those of
    `models`.
    """
    prompt_file, judge = prompt_file or models / PROMPTS, judge or models / JUDGE
    raise_if_any(_missing(models, judge, prompt_file))
    paths = {flag: models / name for flag, name in FILES.items()}
    config = TrainConfig(
        pretrained_model_name_or_path=paths["pretrained_model_name_or_path"],
        ae=paths["ae"],
        clip_l=paths["clip_l"],
        t5xxl=paths["t5xxl"],
        t5xxl_max_token_length=_t5_length(paths["t5xxl"]),
    )
    tokenizers = check_models(config)
    device = device or Accelerator(mixed_precision="no").device
    loaded = load_judge(judge, device)
    prompts = load_prompts(prompt_file, loaded.classes)
    prompts = prompts.some(limit, base=only != "concepts", concepts=only != "base")
    return Evaluation(config, tokenizers, loaded, prompts, seed, device)


def _missing(models: Path, *others: Path) -> list[Problem]:
    reason = "evaluate works only with the tiny FLUX in models/mini: the judge knows no other world"
    files = [*(models / name for name in FILES.values()), *others]
    absent = [path.name for path in files if path.parent == models and not path.is_file()]
    problems = [Problem(f"--models={models}", f"has no {', no '.join(absent)}", reason)] if absent else []
    elsewhere = [path for path in others if path.parent != models and not path.is_file()]
    return problems + [Problem(str(path), "is not there") for path in elsewhere]


def _t5_length(path: Path) -> int:
    try:
        return int(read_header(path).metadata.get(LENGTH_KEY, USUAL_LENGTH))
    except ValueError as error:
        raise Problems([Problem(str(path), f"its header is invalid: {error}")]) from error


def draw_column(evaluation: Evaluation, adapter: Adapter) -> dict[str, torch.Tensor]:
    """Generate the images of every set of prompts with one LoRA: uint8 [n, 3, 256, 256] on the host, by set.

    Raises `Problems` if the LoRA does not fit the model.
    """
    config, device, dtype = evaluation.config, evaluation.device, evaluation.dtype
    assert config.pretrained_model_name_or_path and config.ae
    texts = evaluation.prompts.texts()
    distinct = [text for each in texts.values() for text in each]
    distinct += [route_prompt(text, [lora.triggers for lora in adapter.routed]).class_text for text in distinct]
    encoded = encode_texts(config, adapter.lora, list(dict.fromkeys(distinct)), evaluation.tokenizers, device, dtype)
    transformer = load_transformer(config.pretrained_model_name_or_path, device, dtype)
    apply_lora(adapter.lora, transformer, "transformer.")
    router = Router(transformer, adapter.routed, evaluation.tokenizers.t5) if adapter.routed else None
    vae = load_autoencoder(config.ae, device, torch.float32)
    batch = 8 if device.type == "cpu" else 32
    pictures = {
        name: draw_prompts(
            transformer,
            vae,
            _encodings(encoded, each),
            USUAL,
            evaluation.seed,
            batch,
            f"{adapter.name}: {name}",
            router.batch_sampler(each, encoded, USUAL) if router else None,
        )
        for name, each in texts.items()
    }
    del transformer, vae, router
    free_memory(device)
    return pictures


def _encodings(encoded: Mapping[str, Conditioning], texts: Sequence[str]) -> list[Conditioning]:
    return [encoded[text] for text in texts]


def make_table(evaluation: Evaluation, drawn: Mapping[str, Pictures]) -> Table:
    """Judge the images of each column; the table compares the later columns with the first.

    drawn: the images by column and set of prompts, uint8 [n, 3, H, W].
    """
    columns = []
    for name, pictures in drawn.items():
        scores = score_pictures(evaluation.judge, evaluation.prompts, pictures)
        columns.append(Column(name, scores.percentages, scores.relations))
    return Table(tuple(columns), count_prompts(evaluation.prompts))


def make_sheet(prompts: PromptSets, drawn: Mapping[str, Pictures], rows_of_each: int = SHEET_ROWS) -> Image.Image:
    """A contact sheet with a column for each model and a row for each prompt.

    drawn: the images by column and set of prompts, uint8 [n, 3, H, W]; rows_of_each: at most so many prompts of a set.
    """
    rows = []
    for name, texts in prompts.texts().items():
        for index, text in enumerate(texts[:rows_of_each]):
            rows.append(Row(text, [as_image(pictures[name][index]) for pictures in drawn.values()]))
    note = f"{USUAL.steps} steps, guidance {USUAL.guidance:g}, the same seed across a row"
    return contact_sheet(rows, list(drawn), note=note)
