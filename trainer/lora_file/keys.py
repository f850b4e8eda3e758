"""What the keys of a LoRA file are: modules, the role of each tensor, other kinds of adapter, and the file's layout."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from .foreign import what_it_is
from .module_names import Target, resolve

# What comes after lora_A and is no adapter's name; scales are those of quantized weights.
_NO_ADAPTER = r"(?!weight$|bias$|(?:scale_)?(?:weight|input)(?:_scale)?(?:_2)?$|absmax$|quant_map$|quant_state)"
# What a key ends in -> the tensor's role. `.lora_A.<adapter>.weight` is PEFT's with the adapter's name.
_ROLES = tuple(
    (re.compile(pattern), role)
    for pattern, role in (
        (rf"\.lora_(?:A|down)(?:\.{_NO_ADAPTER}([^.]+))?(?:\.weight)?$", "down"),
        (rf"\.lora_(?:B|up)(?:\.{_NO_ADAPTER}([^.]+))?(?:\.weight)?$", "up"),
        (r"\.lora_(?:B|up)(?:\.(?!bias$)([^.]+))?\.bias$", "bias"),
        (r"(?:[._]lora|\.lora_linear_layer)\.down\.weight$", "down"),
        (r"(?:[._]lora|\.lora_linear_layer)\.up\.weight$", "up"),
        (r"\.(?:lora_|network_)?alpha$", "alpha"),
        (r"\.dora_scale$", "dora_scale"),
        (r"\.lora_magnitude_vector(?:\.(?!weight$)([^.]+))?(?:\.weight)?$", "magnitude"),
        (r"\.lora_mid\.weight$", "mid"),
        (r"\.reshape_weight$", "reshape"),
        (r"\.diff_b$", "diff_b"),
        (r"\.(?:diff|w_norm)$", "diff"),
        (r"\.b_norm$", "diff_b"),
        (r"(?<=_norm)\.scale(?:\.set_weight)?$|\.set_weight$", "set"),
    )
)
_PROCESSOR_ROLE = re.compile(r"(?P<name>.*\.processor\.(?:qkv|proj)_lora[12]?)\.(?P<role>down|up)\.weight")
# Adapters that ComfyUI applies too, but that are not a product of two matrices.
OTHER_KINDS = {".hada_": "LoHa", ".lokr_": "LoKr", ".oft_": "OFT", ".boft_": "BOFT"}
_GLORA = re.compile(r"(.*)\.([ab][12]\.weight)")
ROLES_OF_LORA = frozenset(("down", "up", "alpha", "mid", "reshape", "bias", "diff_b"))
# prefix -> layout; a PEFT prefix may come before another one
PREFIXES = {
    "base_model.model.": "peft",
    "transformer.base_model.model.": "peft",
    "transformer.": "diffusers",
    "lora_unet_": "kohya",
    "diffusion_model.": "comfyui",
    "model.diffusion_model.": "comfyui",
    "lora_transformer_": "onetrainer",
    "lycoris_": "simpletuner",
    "text_encoder_2.": "diffusers",
    "text_encoder.": "diffusers",
    "lora_te": "kohya",
    "text_encoders.": "comfyui",
}


@dataclass(frozen=True)
class Module:
    """One adapted layer of a LoRA file.

    name: the part that its keys have in common; target: the layer of FLUX.1 or of a text encoder that it means, None if
    there is none; keys, shapes: the key and shape of each of its tensors, by role, such as "down", "up" or "alpha";
    kind: of adapter, such as LoRA, DoRA or LoKr.
    """

    name: str
    target: Target | None
    keys: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    kind: str = "LoRA"

    @property
    def rank(self) -> int | None:
        """The rank: the number of rows of the down matrix; None for an adapter without one."""
        return self.shapes["down"][0] if self.shapes.get("down") else None

    @property
    def is_plain(self) -> bool:
        """Whether the module is a product of two matrices and nothing else."""
        return self.kind == "LoRA" and self.keys.keys() <= {"down", "up", "alpha", "reshape"}

    @property
    def problem(self) -> str | None:
        """Why the two matrices of a LoRA or DoRA cannot be multiplied, such as "has no up matrix".

        None if they can, and for other kinds of adapter.
        """
        if self.kind not in ("LoRA", "DoRA"):
            return None
        if missing := [role for role in ("down", "up") if role not in self.keys]:
            return "has no down and no up matrix" if len(missing) == 2 else f"has no {missing[0]} matrix"
        down, up = self.shapes["down"], self.shapes["up"]
        if len(down) < 2 or len(up) < 2:
            return f"has down {list(down)} and up {list(up)}, which are no matrices"
        if down[0] != up[1] and "mid" not in self.keys:
            return f"has rank {down[0]} in down and {up[1]} in up"
        return f"has rank 0: down {list(down)} and up {list(up)}" if 0 in (*down, *up) else None


@dataclass(frozen=True)
class Survey:
    """A LoRA file's modules and layout.

    modules: by their names in the file; unknown: the keys that belong to no module; layout: like `kohya` or
    `diffusers+kohya`; title: the same for a person, by the program that wrote the file where that is known.
    """

    modules: dict[str, Module]
    unknown: tuple[str, ...]
    layout: str
    title: str


def survey(shapes: Mapping[str, Sequence[int]], metadata: Mapping[str, str]) -> Survey:
    """Sort the keys of a LoRA file into modules; no tensor is read.

    shapes: each tensor's shape by its key; metadata: the file's `__metadata__`. Raises ValueError for a file without an
    adapter, saying what it is instead, and for one with several adapters for a layer.
    """
    keys: dict[str, dict[str, str]] = {}
    kinds: dict[str, str] = {}
    unknown = []
    for key in shapes:
        name, role, kind = split_key(key)
        if role is None:
            unknown.append(key)
            continue
        if role in keys.setdefault(name, {}):
            raise ValueError(f"it holds several adapters: {keys[name][role]} and {key}; save each in a file of its own")
        keys[name][role] = key
        if kind != "LoRA":
            kinds[name] = kind
    for name, roles in list(keys.items()):
        lone = name not in kinds and not roles.keys() & {"down", "up", "diff", "diff_b", "bias", "set"}
        if lone or (roles.keys() == {"set"} and not resolve(name)):
            unknown += keys.pop(name).values()
    if not any(roles.keys() - {"set"} for roles in keys.values()):
        raise ValueError(what_it_is(shapes))
    modules = {name: _module(name, roles, kinds.get(name), shapes) for name, roles in keys.items()}
    if "img_in.lora_A.weight" in shapes and any("set" in roles for roles in keys.values()):
        return Survey(modules, tuple(unknown), "bfl_control", "BFL control LoRA")
    return Survey(modules, tuple(unknown), layout_of(modules), _title(shapes, modules, metadata))


def _module(name: str, roles: Mapping[str, str], kind: str | None, shapes: Mapping[str, Sequence[int]]) -> Module:
    if kind is None and roles.keys() & {"dora_scale", "magnitude"}:
        kind = "DoRA"
    if kind is None and not roles.keys() & {"down", "up"}:
        kind = "replacement" if "set" in roles else "difference"
    return Module(name, resolve(name), roles, {role: tuple(shapes[key]) for role, key in roles.items()}, kind or "LoRA")


@lru_cache(maxsize=8192)
def split_key(key: str) -> tuple[str, str | None, str]:
    """The module's name, the role and the kind of adapter that a tensor's key contains.

    "x.lora_A.weight" gives ("x", "down", "LoRA"). Roles are down, up, alpha and others; None for a key of no adapter.
    """
    if match := _PROCESSOR_ROLE.fullmatch(key):
        return match["name"], match["role"], "LoRA"
    for mark, kind in OTHER_KINDS.items():
        name, found, rest = key.rpartition(mark)
        if found and "." not in rest.removesuffix(".weight"):
            return name, mark + rest, kind
    if match := _GLORA.fullmatch(key):
        return match[1], f".{match[2]}", "GLoRA"
    for pattern, role in _ROLES:
        if match := pattern.search(key):
            return key[: match.start()], role, "LoRA"
    return key, None, ""


def layout_of(names: Iterable[str]) -> str:
    """The layouts of a file's module names, joined by `+`: kohya, diffusers, peft, comfyui and others.

    A name without a known prefix is `bare`.
    """
    return "+".join(sorted({_layout(name) for name in names}))


def _layout(name: str) -> str:
    if ".processor." in name and "_lora" in name.rpartition(".")[2]:
        return "xlabs"
    return next((layout for prefix, layout in PREFIXES.items() if name.startswith(prefix)), "bare")


def _title(keys: Iterable[str], names: Iterable[str], metadata: Mapping[str, str]) -> str:
    keys, found = list(keys), layout_of(names)
    if "flux_dreambooth" in metadata or "flux-dreambooth" in metadata.get("modelspec.implementation_version", ""):
        return "kohya, by FLUX DreamBooth" if "kohya" in found else "FLUX DreamBooth"
    if "ai-toolkit" in metadata.get("software", ""):
        return "ai-toolkit"
    if "onetrainer" in found or any(key.startswith("ot_") for key in metadata):
        return "OneTrainer"
    if found == "diffusers":
        return "diffusers with alpha" if any(key.endswith(".alpha") for key in keys) else "diffusers/PEFT"
    return {"xlabs": "XLabs", "bare": "bare names"}.get(found, found)


def more_than_lora(found: Survey) -> list[str]:
    """Sentences on what a file holds that is not plain LoRA of FLUX.1's layers: what, how many, one example.

    found: the result of `survey` for the file. Empty for a file of plain LoRA alone.
    """
    modules = list(found.modules.values())
    sentences = []
    if dora := [module for module in modules if module.kind == "DoRA"]:
        sentences.append(
            f"{_count(dora)} DoRA, as {_example(dora)}: how DoRA changes a layer depends on the base model's weights, "
            "so it is not a product of two matrices"
        )
    for kind in sorted({module.kind for module in modules} - {"LoRA", "DoRA", "difference", "replacement"}):
        some = [module for module in modules if module.kind == kind]
        sentences.append(f"{_count(some)} {kind}, as {_example(some)}: not a product of two matrices")
    for roles, kinds, what in (
        (("bias", "diff_b"), ("LoRA", "DoRA", "difference"), "changes of biases"),
        (("mid",), ("LoRA",), "a third matrix (Tucker)"),
        (("diff",), ("difference",), "full differences of weights or norms"),
        (("set",), ("replacement",), "replaced norms"),
    ):
        if some := [module for module in modules if module.kind in kinds and set(roles) & module.keys.keys()]:
            where = "1 layer" if len(some) == 1 else f"{len(some)} layers"
            sentences.append(f"{what} in {where}, as {_example(some, roles)}")
    plain = [module for module in modules if module.kind == "LoRA"]
    if nameless := [module for module in plain if module.target is None]:
        kind = what_it_is([key for module in nameless for key in module.keys.values()])
        some = "1 module is" if len(nameless) == 1 else f"{len(nameless)} modules are"
        sentences.append(f"{some} of no layer of FLUX.1, as {_example(nameless)}: {kind}")
    if found.unknown:
        some = "1 key is" if len(found.unknown) == 1 else f"{len(found.unknown)} keys are"
        sentences.append(f"{some} of no known kind, as {', '.join(found.unknown[:3])}")
    return sentences


def _count(modules: Sequence[Module]) -> str:
    return f"{len(modules)} layers are" if len(modules) > 1 else "1 layer is"


def _example(modules: Sequence[Module], roles: Iterable[str] = ()) -> str:
    """The key that shows best what the first of the modules is."""
    keys = modules[0].keys
    telling = [role for role in keys if role in roles] or [role for role in keys if role not in ROLES_OF_LORA]
    return keys[telling[0]] if telling else next(iter(keys.values()))
