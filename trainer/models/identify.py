"""What kind of model a file holds, recognised from its header, and whether it is the one that a setting needs."""

from collections.abc import Callable, Mapping
from pathlib import Path

from trainer.common.files import in_container, out_of_reach
from trainer.common.problems import Problem, Problems
from trainer.models.description import FLUX1, ModelFile
from trainer.models.module_plan import (
    ModulePlan,
    missing_or_unexpected,
    plan_autoencoder,
    plan_clip,
    plan_module,
    plan_t5,
    plan_transformer,
)
from trainer.models.names import strip_prefix
from trainer.models.weights import Header, read_header, weight_names

PLANS: Mapping[str, Callable[[Header], ModulePlan]] = {
    "flux": plan_transformer,
    "ae": plan_autoencoder,
    "clip_l": lambda header: plan_clip(header, eos_token_id=0),
    "t5xxl": plan_t5,
}
CLIP_G_WIDTH = 1280
LORA_MARKS = ("lora_", ".lokr_", ".hada_", ".oft_")
EMBEDDED = Path("models/mini")  # the tiny FLUX's folder
LINK_IT = "the container sees only the project's folders: link the file into models/ and give its path from there"
Shapes = Mapping[str, tuple[int, ...]]


def identify(header: Header) -> str:
    """Which of FLUX.1's files this is ("flux", "ae", "clip_l" or "t5xxl"), else its kind in words, such as "a LoRA"."""
    names = {strip_prefix(name): info.shape for name, info in header.tensors.items()}
    kinds = (_adapter, _bundle, _transformer, _autoencoder, _text_encoder, _other_diffusion)
    return next((found for kind in kinds if (found := kind(names))), "a file of unknown tensors")


def check_model_file(path: Path | None, wanted: ModelFile, flag: str) -> list[Problem]:
    """Everything wrong with a model file that an option names, found without reading its weights; [] if nothing is.

    It must be a complete safetensors file of the right kind and precision, with exactly the tensors of the module that
    it fills. path: None if the option was not given. wanted: the file that it has to be. flag: the option, for
    messages.
    """
    hint = _how_to_get(path, wanted)
    if path is None:
        return [Problem(flag, "not given", hint)]
    where = f"{flag}={path}"
    if why := out_of_reach(path):
        return [Problem(where, f"cannot be accessed: {why}", "give this user access to the folders above it")]
    if path.is_dir():
        kind = "a diffusers folder" if _is_diffusers_folder(path) else "a folder"
        return [Problem(where, f"is {kind}, not a single file", hint)]
    if not path.is_file():
        return [Problem(where, "no such file", LINK_IT if path.is_absolute() and in_container() else hint)]
    try:
        header = read_header(path)
    except OSError as error:
        return [Problem(where, f"cannot be read: {error.strerror}", "give this user read permission")]
    except ValueError as error:
        return [Problem(where, f"cannot be used: {error}", hint)]
    found = identify(header)
    if found != wanted.key:
        return [Problem(where, f"is {_in_words(found)}, not {wanted.title}", hint)]
    return _wrong_dtypes(header, wanted, where, hint) or _wrong_tensors(header, wanted, where, hint)


def _how_to_get(path: Path | None, wanted: ModelFile) -> str:
    if path and path.parent == EMBEDDED:
        return "it comes with the repository: git pull"
    if wanted is not FLUX1.transformer:
        return f"sh download.sh, or give {wanted.title}: {wanted.source}"
    base = FLUX1.published(path.name if path else "")
    return f"sh download.sh {base.flag}".rstrip() + f", or give {wanted.title}: {base.source}"


def _wrong_dtypes(header: Header, wanted: ModelFile, where: str, hint: str) -> list[Problem]:
    used = {header.tensors[name].dtype for name in weight_names(header) if not name.endswith("position_ids")}
    refused = sorted(used - set(wanted.dtypes))
    if not refused:
        return []
    what = ", ".join(f"fp8 ({name[3:].lower()})" if name.startswith("F8_") else name for name in refused)
    accepted = ", ".join(wanted.dtypes)
    return [Problem(where, f"its weights are {what}; {wanted.title} may be {accepted}", hint)]


def _wrong_tensors(header: Header, wanted: ModelFile, where: str, hint: str) -> list[Problem]:
    try:
        found = missing_or_unexpected(plan_module(header, PLANS[wanted.key]))
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
    if width and width != FLUX1.latents.features:
        return "a FLUX.1 transformer with more inputs than the image (Fill, Canny, Depth)"
    return "flux"


def _autoencoder(names: Shapes) -> str | None:
    if any(name.startswith(("encoder.down_blocks.", "decoder.up_blocks.")) for name in names):
        return "an autoencoder in diffusers' layout"
    if not any(name.startswith(("encoder.down.", "decoder.up.")) for name in names):
        return None
    channels = names.get("decoder.conv_in.weight", (0, FLUX1.latents.channels))[1]
    return "ae" if channels == FLUX1.latents.channels else f"an autoencoder of {channels} latent channels"


def _text_encoder(names: Shapes) -> str | None:
    if any(name.startswith("decoder.block.") for name in names):
        return "a T5 with its decoder"
    if any(name.startswith("encoder.block.") for name in names):
        return "t5xxl"
    if any(name.startswith("vision_model.") for name in names):
        return "a complete CLIP, image encoder included"
    layer = "encoder.layers.0.self_attn.q_proj.weight"
    shape = names.get(f"text_model.{layer}", names.get(layer))
    if shape is None:
        return None
    return "CLIP-G's text encoder" if shape[0] == CLIP_G_WIDTH else "clip_l"


def _other_diffusion(names: Shapes) -> str | None:
    if any(name.startswith(("input_blocks.", "down_blocks.")) for name in names):
        return "a Stable Diffusion U-Net"
    if any(name.startswith("joint_blocks.") for name in names):
        return "a Stable Diffusion 3 transformer"
    return None


def _in_words(kind: str) -> str:
    return FLUX1.file(kind).title if kind in PLANS else kind


def _is_diffusers_folder(path: Path) -> bool:
    return any((path / name).is_file() for name in ("model_index.json", "config.json"))
