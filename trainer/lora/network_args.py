"""`--network_args`: which layers of the transformer are adapted, with which rank, dropout and LoRA+ ratio."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trainer.common.problems import Problem, Problems, raise_if_any
from trainer.config.fields import Invalid, Schema, Spec, read_pairs, shown
from trainer.lora_file.flux_names import bfl_module, kohya_name

_WHERE = "--network_args"
_TYPES = ("img_attn", "txt_attn", "img_mlp", "txt_mlp", "img_mod", "txt_mod", "single", "single_mod")
_DROP = "leave it out; use network_dropout, rank_dropout or a lower learning_rate"
_CONVOLUTION = "leave it out; FLUX's blocks have no convolutions"

# key -> what it does
KEYS: dict[str, str] = {
    "train_blocks": "`all`, `double` or `single` blocks",
    **{f"{each}_dim": f"rank of the {each} layers; 0 leaves them out" for each in _TYPES},
    "train_double_block_indices": "double blocks to adapt: `0,3-5`, `all` or `none`",
    "train_single_block_indices": "single blocks to adapt: `0,3-5`, `all` or `none`",
    "network_reg_dims": "`regex=rank,...` on kohya's or diffusers' layer names; overrides all other ranks",
    "rank_dropout": "probability that a rank is dropped for a sample",
    "module_dropout": "probability that a layer's adapter is dropped for a forward pass",
    "loraplus_lr_ratio": "learning rate of the up matrices, as a multiple of that of the down matrices (LoRA+)",
    "loraplus_unet_lr_ratio": "loraplus_lr_ratio for the transformer only",
    "loraplus_text_encoder_lr_ratio": "loraplus_lr_ratio for CLIP-L only",
}
REFUSED_KEYS: dict[str, str] = {
    "split_qkv": "leave it out; q, k and v always have separate LoRAs",
    "ggpo_sigma": _DROP,
    "ggpo_beta": _DROP,
    "in_dims": "leave it out; layers outside the blocks are not adapted",
    "train_t5xxl": "leave it out; T5 is never trained",
    "network_reg_lrs": "leave it out; all layers of the transformer have one learning rate",
    "conv_dim": _CONVOLUTION,
    "conv_alpha": _CONVOLUTION,
    "verbose": "leave it out; `python -m trainer info` lists the adapted layers",
}


@dataclass(frozen=True, kw_only=True)
class NetworkArgs:
    """The parsed `--network_args`.

    train_blocks: "all", "double" or "single"; type_ranks: kohya's layer type, like "img_attn" -> rank; double_blocks,
    single_blocks: indices, None for all; reg_dims: (regex, rank) pairs, of which the last match counts; dropouts:
    probabilities; loraplus ratios: learning rate of up matrices / that of down matrices, None where not given.
    """

    train_blocks: str = "all"
    type_ranks: Mapping[str, int] = field(default_factory=dict)
    double_blocks: frozenset[int] | None = None
    single_blocks: frozenset[int] | None = None
    reg_dims: tuple[tuple[str, int], ...] = ()
    rank_dropout: float = 0.0
    module_dropout: float = 0.0
    loraplus_unet_lr_ratio: float | None = None
    loraplus_text_encoder_lr_ratio: float | None = None

    @property
    def chosen_ranks(self) -> list[str]:
        """The given keys of --network_args that choose layers or their ranks, like "train_blocks" or "img_attn_dim"."""
        given = {
            "train_blocks": self.train_blocks != "all",
            **{f"{each}_dim": True for each in self.type_ranks},
            "train_double_block_indices": self.double_blocks is not None,
            "train_single_block_indices": self.single_blocks is not None,
            "network_reg_dims": bool(self.reg_dims),
        }
        return [name for name, is_given in given.items() if is_given]

    def learning_rates(self, transformer: float, text_encoder: float) -> dict[tuple[str, str], float]:
        """Learning rates by (model, matrix), like ("transformer", "lora_B"); LoRA+ multiplies those of lora_B (up).

        transformer, text_encoder: the models' base learning rates, 0 for one that is not trained.
        """
        of_up = self.loraplus_unet_lr_ratio, self.loraplus_text_encoder_lr_ratio
        return {
            ("transformer", "lora_A"): transformer,
            ("transformer", "lora_B"): transformer * (of_up[0] or 1),
            ("text_encoder", "lora_A"): text_encoder,
            ("text_encoder", "lora_B"): text_encoder * (of_up[1] or 1),
        }


def parse_network_args(words: Sequence[str]) -> NetworkArgs:
    """Parse the words of `--network_args`, each `key=value`. Raises `Problems` with every bad one."""
    given, problems = read_pairs(words, _WHERE)
    read = _ARGUMENTS.read(given)
    raise_if_any(problems + read.problems)
    return _assemble(read.values)


def _assemble(values: dict[str, Any]) -> NetworkArgs:
    ratio = values.get("loraplus_lr_ratio")
    return NetworkArgs(
        train_blocks=values.get("train_blocks", NetworkArgs.train_blocks),
        type_ranks={each: values[f"{each}_dim"] for each in _TYPES if f"{each}_dim" in values},
        double_blocks=values.get("train_double_block_indices"),
        single_blocks=values.get("train_single_block_indices"),
        reg_dims=values.get("network_reg_dims", NetworkArgs.reg_dims),
        rank_dropout=values.get("rank_dropout", NetworkArgs.rank_dropout),
        module_dropout=values.get("module_dropout", NetworkArgs.module_dropout),
        loraplus_unet_lr_ratio=values.get("loraplus_unet_lr_ratio", ratio),
        loraplus_text_encoder_lr_ratio=values.get("loraplus_text_encoder_lr_ratio", ratio),
    )


def layer_ranks(modules: Sequence[str], network_dim: int, args: NetworkArgs) -> dict[str, int]:
    """The rank of each adapted module, in the order given; modules that are not adapted are left out.

    modules: the layers that can be adapted, by diffusers' names, like `transformer_blocks.0.attn.to_q`; network_dim:
    the rank of layers for which `args` sets none. Raises `Problems` for a setting that matches no layer, because it
    would be ignored otherwise, and if no layer is left.
    """
    candidates = [name for name in modules if args.train_blocks in ("all", _place(name)[0])]
    raise_if_any(_unreached(candidates, args))
    ranks = {name: _rank(name, network_dim, args) for name in candidates}
    kept = {name: rank for name, rank in ranks.items() if rank > 0}
    if not kept:
        raise Problems([Problem(_WHERE, "no layer is left to adapt", "select more blocks, or set a rank above 0")])
    return kept


def _rank(name: str, network_dim: int, args: NetworkArgs) -> int:
    for regex, rank in reversed(args.reg_dims):
        if _matches(regex, name):
            return rank
    blocks, index, layer_type = _place(name)
    selected = args.double_blocks if blocks == "double" else args.single_blocks
    if selected is not None and index not in selected:
        return 0
    return args.type_ranks.get(layer_type, network_dim)


def _place(name: str) -> tuple[str, int, str]:
    """`double` or `single`, the index of the block, and kohya's layer type."""
    blocks, index, layer, *_ = bfl_module(name)[0].split(".")
    if blocks == "double_blocks":
        return "double", int(index), layer
    return "single", int(index), "single_mod" if layer == "modulation" else "single"


def _matches(regex: str, name: str) -> bool:
    return bool(re.search(regex, name) or re.search(regex, kohya_name(bfl_module(name)[0])))


def _unreached(candidates: Sequence[str], args: NetworkArgs) -> list[Problem]:
    places = [_place(name) for name in candidates]
    problems = []
    for blocks, selected in (("double", args.double_blocks), ("single", args.single_blocks)):
        there = {index for each, index, _ in places if each == blocks}
        if missing := sorted((selected or set()) - there):
            has = f"the model has blocks 0-{max(there)}" if there else f"train_blocks={args.train_blocks} leaves none"
            what = f"train_{blocks}_block_indices names {', '.join(map(str, missing))}"
            problems.append(Problem(_WHERE, what, has))
    types = {layer_type for _, _, layer_type in places}
    for layer_type in args.type_ranks.keys() - types:
        hint = "leave it out, or choose other train_blocks"
        problems.append(Problem(_WHERE, f"{layer_type}_dim matches no layer", hint))
    for regex, _ in args.reg_dims:
        if not any(_matches(regex, name) for name in candidates):
            hint = "names look like lora_unet_double_blocks_0_img_attn_qkv or transformer_blocks.0.attn.to_q"
            problems.append(Problem(_WHERE, f"network_reg_dims: {regex!r} matches no layer", hint))
    return problems


# --- values: each parser takes the text and raises `Invalid`


def _indices(text: str) -> frozenset[int] | None:
    """Block numbers of `0,3-5`; None for `all`."""
    if text == "all":
        return None
    selected: set[int] = set()
    for part in text.split(",") if text not in ("", "none") else ():
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise Invalid(f"has {shown(part)}", "write numbers and ranges like 0,3-5")
        selected.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return frozenset(selected)


def _reg_dims(text: str) -> tuple[tuple[str, int], ...]:
    pairs = []
    for part in _split_outside_brackets(text):
        regex, equals, rank = (each.strip() for each in part.rpartition("="))
        if not equals or not rank.isdecimal():
            raise Invalid(f"has {shown(part)}", "write regex=rank, with commas between several")
        try:
            re.compile(regex)
        except re.error as error:
            raise Invalid(f"has {shown(regex)}, which is not a regular expression: {error}") from None
        pairs.append((regex, int(rank)))
    return tuple(pairs)


def _split_outside_brackets(text: str) -> list[str]:
    """Parts between commas; a comma inside [], () or {}, or after a backslash, belongs to its part."""
    parts, depth = [""], 0
    for piece in re.findall(r"\\.|.", text):
        depth += piece in "([{"
        depth -= piece in ")]}"
        if piece == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += piece
    return [part for part in parts if part.strip()]


_RANK, _PROBABILITY, _RATIO = Spec(type=int, ge=0), Spec(type=float, ge=0, lt=1), Spec(type=float, ge=1e-3, lt=1e4)
_ARGUMENTS = Schema(
    specs={
        "train_blocks": Spec(choices=("all", "double", "single")),
        **{f"{each}_dim": _RANK for each in _TYPES},
        "train_double_block_indices": Spec(parse=_indices),
        "train_single_block_indices": Spec(parse=_indices),
        "network_reg_dims": Spec(parse=_reg_dims),
        "rank_dropout": _PROBABILITY,
        "module_dropout": _PROBABILITY,
        "loraplus_lr_ratio": _RATIO,
        "loraplus_unet_lr_ratio": _RATIO,
        "loraplus_text_encoder_lr_ratio": _RATIO,
    },
    noun="a key of --network_args",
    refused=REFUSED_KEYS,
    listing=f"the keys are {', '.join(KEYS)}",
)
