"""What kind of model a file holds, told from its header, and whether it is the one that a flag wants."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from trainer.common.files import out_of_reach
from trainer.common.problems import Problem, Problems
from trainer.models.load import (
    Plan,
    missing_or_unexpected,
    plan_autoencoder,
    plan_clip,
    plan_module,
    plan_t5,
    plan_transformer,
)
from trainer.models.names import strip_prefix
from trainer.models.weights import Header, read_header, weight_names

FULL_PRECISION = ("F32", "F16", "BF16")
OR_FP8 = (*FULL_PRECISION, "F8_E4M3")
LATENT_CHANNELS = 16  # channels of FLUX.1's latents; Stable Diffusion's have 4
Shapes = Mapping[str, tuple[int, ...]]

LORA_MARKS = ("lora_", ".lokr_", ".hada_", ".oft_")


@dataclass(frozen=True)
class Role:
    """One of the four files: what it is, what to download for it, and how to plan its module."""

    what: str
    download: str
    plan: Callable[[Header], Plan]
    dtypes: tuple[str, ...] = FULL_PRECISION


ROLES: Mapping[str, Role] = {
    "flux": Role(
        "the FLUX.1 transformer",
        "flux1-dev.safetensors from black-forest-labs/FLUX.1-dev",
        plan_transformer,
        OR_FP8,
    ),
    "autoencoder": Role("FLUX.1's autoencoder", "ae.safetensors from black-forest-labs/FLUX.1-dev", plan_autoencoder),
    "clip_l": Role(
        "CLIP-L's text encoder",
        "clip_l.safetensors from comfyanonymous/flux_text_encoders",
        lambda header: plan_clip(header, eos_token_id=0),
    ),
    "t5": Role(
        "the T5-XXL encoder",
        "t5xxl_fp16.safetensors from comfyanonymous/flux_text_encoders",
        plan_t5,
        OR_FP8,
    ),
}


def identify(header: Header) -> str:
    """A role's name ("flux", "autoencoder", "clip_l", "t5"), else the kind of file in words."""
    names = {strip_prefix(name): info.shape for name, info in header.tensors.items()}
    kinds = (_adapter, _bundle, _transformer, _autoencoder, _text_encoder, _other_diffusion)
    return next((found for kind in kinds if (found := kind(names))), "a file of unknown tensors")


def check_model_file(path: Path | None, role: str, flag: str) -> list[Problem]:
    """Everything wrong with the file that `flag` names, found without reading its weights.

    role: a key of ROLES. Checks that it is a whole safetensors file of the right kind and precision,
    and that its tensors are exactly those of the module it fills.
    """
    wanted = ROLES[role]
    hint = f"give {wanted.what}: {wanted.download}"
    if path is None:
        return [Problem(flag, "not given", hint)]
    where = f"{flag}={path}"
    if why := out_of_reach(path):
        return [Problem(where, f"cannot be looked at: {why}", "let this user enter the folders above it")]
    if path.is_dir():
        kind = "a diffusers folder" if _is_diffusers_folder(path) else "a folder"
        return [Problem(where, f"is {kind}, not a single file", hint)]
    if not path.is_file():
        return [Problem(where, "there is no such file", hint)]
    try:
        header = read_header(path)
    except OSError as error:
        return [Problem(where, f"cannot be read: {error.strerror}", "let this user read it")]
    except ValueError as error:
        return [Problem(where, f"cannot be used: {error}", hint)]
    found = identify(header)
    if found != role:
        return [Problem(where, f"is {_in_words(found)}, not {wanted.what}", hint)]
    return _wrong_dtypes(header, wanted, where, hint) or _wrong_tensors(header, wanted, where, hint)


def _wrong_dtypes(header: Header, wanted: Role, where: str, hint: str) -> list[Problem]:
    used = {header.tensors[name].dtype for name in weight_names(header) if not name.endswith("position_ids")}
    refused = sorted(used - set(wanted.dtypes))
    if not refused:
        return []
    what = ", ".join(f"fp8 ({name[3:].lower()})" if name.startswith("F8_") else name for name in refused)
    accepted = ", ".join(wanted.dtypes)
    return [Problem(where, f"its weights are {what}; {wanted.what} may be {accepted}", hint)]


def _wrong_tensors(header: Header, wanted: Role, where: str, hint: str) -> list[Problem]:
    try:
        found = missing_or_unexpected(plan_module(header, wanted.plan))
    except Problems as problems:
        found = problems.problems
    return [Problem(where, problem.what, hint) for problem in found]


def _adapter(names: Shapes) -> str | None:
    return "a LoRA" if any(mark in name for name in names for mark in LORA_MARKS) else None


def _bundle(names: Shapes) -> str | None:
    others = ("vae.", "first_stage_model.", "text_encoders.", "cond_stage_model.", "conditioner.")
    together = any(name.startswith(others) for name in names)
    return "a checkpoint of several models in one file" if together else None


def _transformer(names: Shapes) -> str | None:
    if any(name.startswith(("transformer_blocks.", "single_transformer_blocks.")) for name in names):
        return "a transformer in diffusers' layout"
    if any(name.startswith("distilled_guidance_layer.") for name in names):
        return "a Chroma transformer"
    if "double_stream_modulation_img.lin.weight" in names:
        return "a FLUX.2 transformer"
    if not any(name.startswith(("double_blocks.", "single_blocks.")) for name in names):
        return None
    width = names.get("img_in.weight", (0, 0))[-1]
    if width and width != 4 * LATENT_CHANNELS:
        return "a FLUX.1 transformer that takes more than the picture (Fill, Canny, Depth)"
    return "flux"


def _autoencoder(names: Shapes) -> str | None:
    if any(name.startswith(("encoder.down_blocks.", "decoder.up_blocks.")) for name in names):
        return "an autoencoder in diffusers' layout"
    if not any(name.startswith(("encoder.down.", "decoder.up.")) for name in names):
        return None
    channels = names.get("decoder.conv_in.weight", (0, LATENT_CHANNELS))[1]
    return "autoencoder" if channels == LATENT_CHANNELS else f"an autoencoder of {channels} latent channels"


def _text_encoder(names: Shapes) -> str | None:
    if any(name.startswith("decoder.block.") for name in names):
        return "a T5 with its decoder"
    if any(name.startswith("encoder.block.") for name in names):
        return "t5"
    if any(name.startswith("vision_model.") for name in names):
        return "a whole CLIP, pictures included"
    layer = "encoder.layers.0.self_attn.q_proj.weight"
    shape = names.get(f"text_model.{layer}", names.get(layer))
    if shape is None:
        return None
    return "CLIP-G's text encoder" if shape[0] == 1280 else "clip_l"


def _other_diffusion(names: Shapes) -> str | None:
    if any(name.startswith(("input_blocks.", "down_blocks.")) for name in names):
        return "a Stable Diffusion U-Net"
    if any(name.startswith("joint_blocks.") for name in names):
        return "a Stable Diffusion 3 transformer"
    return None


def _in_words(kind: str) -> str:
    return ROLES[kind].what if kind in ROLES else kind


def _is_diffusers_folder(path: Path) -> bool:
    return any((path / name).is_file() for name in ("model_index.json", "config.json"))
