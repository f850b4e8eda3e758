"""A small FLUX.1 from one folder, on ComfyUI's own classes.

ComfyUI's loaders take the sizes of FLUX.1-dev for granted: heads, vocabulary, the width of the autoencoder.
Here they come from the tensors' shapes and, where shapes cannot tell, from the files' metadata:
`num_attention_heads` of CLIP (else heads of 64) and `max_token_length` of T5 (else ComfyUI's 256).
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .safetensors_header import Header, read_header

if TYPE_CHECKING:
    import torch

Shapes = Mapping[str, tuple[int, ...]]
STARTS = {"transformer": "flux1", "autoencoder": "ae", "clip": "clip_l", "t5": "t5"}  # of the files' names
TOKENIZERS = ("tokenizers/tokenizer/vocab.json", "tokenizers/tokenizer_2/tokenizer.json")
CLIP_HEAD_WIDTH = 64
CLIP_ROWS = 49408  # rows of the token embedding in ComfyUI's CLIP-L, for any vocabulary
USUAL_T5_LENGTH = 256  # what ComfyUI pads a FLUX prompt to
T5_LENGTH = "flux_dreambooth_t5_length"  # the model's attachment that holds the length it was trained with


@dataclass(frozen=True)
class MiniFiles:
    """The four files of a small FLUX and the folder with both tokenizers."""

    transformer: Path
    autoencoder: Path
    clip: Path
    t5: Path
    tokenizers: Path

    @property
    def fingerprint(self) -> str:
        """Changes whenever one of the files does."""
        found = (path.stat() for path in (self.transformer, self.autoencoder, self.clip, self.t5))
        return " ".join(f"{stat.st_mtime_ns}:{stat.st_size}" for stat in found)


def find_files(folder: Path) -> MiniFiles:
    """The first file of each kind. Raises FileNotFoundError that names what is missing."""
    found = {kind: next(iter(sorted(folder.glob(f"{start}*.safetensors"))), None) for kind, start in STARTS.items()}
    missing = [f"{STARTS[kind]}*.safetensors" for kind, path in found.items() if path is None]
    missing += [name for name in TOKENIZERS if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} has no {', no '.join(missing)}")
    return MiniFiles(**found, tokenizers=folder / "tokenizers")  # type: ignore[arg-type]


def folders(models: Path) -> list[str]:
    """The folders right below `models` that hold a small FLUX."""
    names = []
    for folder in sorted(models.iterdir()) if models.is_dir() else []:
        try:
            find_files(folder)
        except OSError:
            continue
        names.append(folder.name)
    return names


def clip_sizes(header: Header) -> dict[str, int]:
    """ComfyUI's `clip_l_model_config` of a CLIP file."""
    shapes = header.shapes
    width = _shape(shapes, "text_model.embeddings.token_embedding.weight")[1]
    return {
        "hidden_size": width,
        "num_hidden_layers": count(shapes, r"text_model\.encoder\.layers\.(\d+)\."),
        "num_attention_heads": metadata_int(header, "num_attention_heads", width // CLIP_HEAD_WIDTH),
        "intermediate_size": _shape(shapes, "text_model.encoder.layers.0.mlp.fc1.weight")[0],
        "max_position_embeddings": _shape(shapes, "text_model.embeddings.position_embedding.weight")[0],
    }


def t5_sizes(header: Header) -> dict[str, int]:
    """ComfyUI's `t5xxl_model_config` of a T5 file."""
    shapes = header.shapes
    attention = "encoder.block.0.layer.0.SelfAttention"
    heads = _shape(shapes, f"{attention}.relative_attention_bias.weight")[1]
    vocabulary, width = _shape(shapes, "shared.weight")
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "d_ff": _shape(shapes, "encoder.block.0.layer.1.DenseReluDense.wo.weight")[1],
        "d_kv": _shape(shapes, f"{attention}.q.weight")[0] // heads,
        "num_heads": heads,
        "num_layers": count(shapes, r"encoder\.block\.(\d+)\."),
    }


def autoencoder_sizes(shapes: Shapes) -> dict[str, Any]:
    """ComfyUI's `ddconfig` of an autoencoder file."""
    width, levels = _shape(shapes, "encoder.conv_in.weight")[0], count(shapes, r"encoder\.down\.(\d+)\.")
    widths = [_shape(shapes, f"encoder.down.{level}.block.0.conv2.weight")[0] for level in range(levels)]
    return {
        "ch": width,
        "ch_mult": [each // width for each in widths],
        "num_res_blocks": count(shapes, r"encoder\.down\.0\.block\.(\d+)\."),
        "z_channels": _shape(shapes, "decoder.conv_in.weight")[1],
        "double_z": True, "resolution": 256, "in_channels": 3, "out_ch": 3, "attn_resolutions": [], "dropout": 0.0,
    }  # fmt: skip


def count(names: Collection[str], pattern: str) -> int:
    """One more than the largest number that the pattern matches at the start of a name."""
    return 1 + max((int(match[1]) for name in names if (match := re.match(pattern, name))), default=-1)


def metadata_int(header: Header, key: str, default: int) -> int:
    """A positive integer from a file's metadata. Raises ValueError for anything else."""
    stated = header.metadata.get(key, str(default))
    if not stated.isdecimal() or int(stated) < 1:
        raise ValueError(f"metadata {key} is {stated!r}, not a positive integer")
    return int(stated)


def _shape(shapes: Shapes, name: str) -> tuple[int, ...]:
    if name not in shapes:
        raise ValueError(f"has no tensor {name}: it is not the file that its name says")
    return shapes[name]


def load_transformer(path: Path) -> Any:
    """A ModelPatcher of ComfyUI's Flux."""
    import comfy.model_detection
    import comfy.model_management as management
    import comfy.model_patcher
    import comfy.supported_models as supported
    import comfy.utils

    shapes = read_header(path).shapes
    tensors = comfy.utils.load_torch_file(str(path), safe_load=True)
    head = _shape(shapes, "double_blocks.0.img_attn.norm.key_norm.scale")[0]
    config = comfy.model_detection.detect_unet_config(tensors, "")
    config["num_heads"] = config["hidden_size"] // head
    if sum(config["axes_dim"]) != head:
        raise ValueError(f"{path.name} has heads of {head}; FLUX.1's are {sum(config['axes_dim'])} wide")
    settings = (supported.Flux if config["guidance_embed"] else supported.FluxSchnell)(config)
    device, rest = management.get_torch_device(), management.unet_offload_device()
    dtypes = list(settings.supported_inference_dtypes)
    size, stored = comfy.utils.calculate_parameters(tensors), comfy.utils.weight_dtype(tensors)
    dtype = management.unet_dtype(model_params=size, supported_dtypes=dtypes, weight_dtype=stored)
    settings.set_inference_dtype(dtype, management.unet_manual_cast(dtype, device, dtypes))
    model = settings.get_model(tensors, "", device=rest)
    model.load_model_weights(dict(tensors), "")
    return comfy.model_patcher.ModelPatcher(model.to(rest), load_device=device, offload_device=rest)


def load_text_encoders(files: MiniFiles, embeddings: list[str]) -> Any:
    """A CLIP (of ComfyUI: both text encoders and both tokenizers), in float32.

    embeddings: ComfyUI's folders of textual inversions.
    """
    import comfy.sd
    import comfy.supported_models_base
    import comfy.utils
    import torch

    headers = read_header(files.clip), read_header(files.t5)
    sizes = {"clip_l_model_config": clip_sizes(headers[0]), "t5xxl_model_config": t5_sizes(headers[1])}
    clip, t5 = (comfy.utils.load_torch_file(str(path), safe_load=True) for path in (files.clip, files.t5))
    length = metadata_int(headers[1], "max_token_length", USUAL_T5_LENGTH)
    tokenizer, encoder = _classes(files.tokenizers, sizes, length)
    return comfy.sd.CLIP(
        comfy.supported_models_base.ClipTarget(tokenizer, encoder),
        embedding_directory=embeddings,
        state_dict=[with_all_rows(clip), t5],
        parameters=sum(map(comfy.utils.calculate_parameters, (clip, t5))),
        model_options=sizes | {"dtype": torch.float32},
    )


def with_all_rows(clip: "dict[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """CLIP's tensors, with rows of zeros after the vocabulary's, and the projection that its file lacks."""
    import torch

    name, projection = "text_model.embeddings.token_embedding.weight", "text_projection.weight"
    rows = clip[name]
    padding = rows.new_zeros(max(CLIP_ROWS - len(rows), 0), rows.shape[1])
    whole = {projection: torch.eye(rows.shape[1], dtype=rows.dtype)} | clip
    return whole | {name: torch.cat([rows, padding])}


def _classes(folder: Path, sizes: dict[str, dict[str, int]], length: int) -> tuple[type, type]:
    """Subclasses of ComfyUI's tokenizer and text encoder for FLUX, for the vocabularies in `folder`."""
    import comfy.text_encoders.flux as flux
    import torch
    from comfy.sd1_clip import SDTokenizer
    from transformers import T5TokenizerFast  # pyright: ignore[reportAttributeAccessIssue]

    class ClipTokenizer(SDTokenizer):
        def __init__(self, embedding_directory: Any, tokenizer_data: dict):
            super().__init__(
                str(folder / "tokenizer"),
                embedding_directory=embedding_directory,
                embedding_size=sizes["clip_l_model_config"]["hidden_size"],
                tokenizer_data=tokenizer_data,
            )

    class T5Tokenizer(SDTokenizer):
        def __init__(self, embedding_directory: Any, tokenizer_data: dict):
            super().__init__(
                str(folder / "tokenizer_2"),
                embedding_directory=embedding_directory,
                embedding_size=sizes["t5xxl_model_config"]["d_model"],
                embedding_key="t5xxl",
                tokenizer_class=T5TokenizerFast,
                tokenizer_data=tokenizer_data,
                has_start_token=False,
                pad_with_end=False,
                pad_to_max_length=False,
                max_length=99999999,
                min_length=length,
            )

    class Tokenizer(flux.FluxTokenizer):
        def __init__(self, embedding_directory: Any = None, tokenizer_data: dict | None = None):
            self.clip_l = ClipTokenizer(embedding_directory, tokenizer_data or {})
            self.t5xxl = T5Tokenizer(embedding_directory, tokenizer_data or {})

    class TextEncoder(flux.FluxClipModel):
        def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: dict | None = None):
            super().__init__(torch.float32, device, dtype, model_options or {})
            own = ClipTokenizer(None, {})  # the pooled output is that of the first end token
            self.clip_l.special_tokens = {"start": own.start_token, "end": own.end_token, "pad": own.pad_token}

    return Tokenizer, TextEncoder


def load_autoencoder(path: Path) -> Any:
    """A VAE of ComfyUI. Its class has two convolutions more than FLUX.1's; here they are identities."""
    import comfy.sd
    import comfy.utils
    import torch

    sizes = autoencoder_sizes(read_header(path).shapes)
    tensors = comfy.utils.load_torch_file(str(path), safe_load=True)
    channels = sizes["z_channels"]
    for name, width in (("quant_conv", 2 * channels), ("post_quant_conv", channels)):
        tensors[f"{name}.weight"] = torch.eye(width)[:, :, None, None].contiguous()
        tensors[f"{name}.bias"] = torch.zeros(width)
    vae = comfy.sd.VAE(sd=tensors, config={"params": {"ddconfig": sizes, "embed_dim": channels}})
    vae.latent_channels = channels
    vae.downscale_ratio = vae.upscale_ratio = 2 ** (len(sizes["ch_mult"]) - 1)
    return vae


def load(folder: Path, embeddings: list[str]) -> tuple[Any, Any, Any]:
    """Load MODEL, CLIP and VAE. Raises ValueError or FileNotFoundError that names the unusable or missing file."""
    files = find_files(folder)
    model = load_transformer(files.transformer)
    model.set_attachments(T5_LENGTH, metadata_int(read_header(files.t5), "max_token_length", USUAL_T5_LENGTH))
    return model, load_text_encoders(files, embeddings), load_autoencoder(files.autoencoder)
