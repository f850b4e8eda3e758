"""Write FLUX.1's model files with random numbers: names, shapes, dtypes and folders are those of the real ones.

    python -m benchmarks.random_flux --size tiny|small|full --out DIR [--device cuda] [--seed 0]

The full size (34 GB) is for measuring speed and memory without a download. Numbers are generated on the device and
written tensor by tensor, so host memory holds one tensor at a time. Activations stay in range, and nothing is zero.
"""

import argparse
import json
import math
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.random_tokenizers import write_clip_tokenizer, write_t5_tokenizer
from trainer.models.weights import read_header

Shape = tuple[int, ...]
Shapes = dict[str, Shape]

# The sizes of the published files in bytes. The headers of the transformer and the autoencoder contain descriptions;
# ours are padded with spaces to the same length.
REAL_BYTES = {
    "flux1-dev.safetensors": 23_802_932_552,
    "ae.safetensors": 335_304_388,
    "clip_l.safetensors": 246_144_152,
    "t5xxl_fp16.safetensors": 9_787_841_024,
}
DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


@dataclass(frozen=True)
class Size:
    """The dimensions of a FLUX.1; the defaults are the real ones."""

    hidden: int = 3072
    head_dim: int = 128
    double_blocks: int = 19
    single_blocks: int = 38
    vae_width: int = 128
    vae_multipliers: tuple[int, ...] = (1, 2, 4, 4)
    vae_latents: int = 16
    clip_width: int = 768
    clip_layers: int = 12
    clip_mlp: int = 3072
    clip_vocabulary: int = 49408
    t5_width: int = 4096
    t5_layers: int = 24
    t5_mlp: int = 10240
    t5_heads: int = 64
    t5_head_dim: int = 64
    t5_vocabulary: int = 32128


SIZES = {
    "tiny": Size(
        hidden=256, double_blocks=2, single_blocks=2, vae_width=32,
        clip_width=64, clip_layers=2, clip_mlp=128, clip_vocabulary=514,
        t5_width=64, t5_layers=2, t5_mlp=128, t5_heads=4, t5_head_dim=16, t5_vocabulary=256,
    ),
    "small": Size(
        hidden=512, double_blocks=3, single_blocks=6, vae_width=64, vae_multipliers=(1, 1, 2, 2),
        clip_width=256, clip_layers=4, clip_mlp=1024, clip_vocabulary=514,
        t5_width=256, t5_layers=4, t5_mlp=512, t5_heads=4, t5_head_dim=64, t5_vocabulary=256,
    ),
    "full": Size(),
}  # fmt: skip


@dataclass(frozen=True)
class ModelFiles:
    """Paths of the files that `write_model_files` wrote."""

    transformer: Path
    ae: Path
    clip_l: Path
    t5xxl: Path
    tokenizer_dir: Path


@dataclass(frozen=True)
class Content:
    """A model file to write: its tensors, all of one dtype. total_bytes: its size with a padded header, if any."""

    path: Path
    shapes: Shapes
    dtype: torch.dtype
    metadata: Mapping[str, str]
    total_bytes: int | None

    @property
    def num_bytes(self) -> int:
        """The size of the file on disk."""
        data = sum(math.prod(shape) for shape in self.shapes.values()) * self.dtype.itemsize
        return self.total_bytes or data + len(file_header(self.shapes, self.dtype, self.metadata))

    @property
    def is_whole(self) -> bool:
        """Whether the file exists with these tensors and its full size."""
        try:
            found = read_header(self.path).tensors.values()
        except (OSError, ValueError):
            return False
        dtype = DTYPE_NAMES[self.dtype]
        return {(info.name, info.shape, info.dtype) for info in found} == {
            (name, tuple(shape), dtype) for name, shape in self.shapes.items()
        }


def model_files(folder: Path, guidance: bool = True) -> ModelFiles:
    """The paths of the files in `folder`."""
    return ModelFiles(
        transformer=folder / "checkpoints" / f"flux1-{'dev' if guidance else 'schnell'}.safetensors",
        ae=folder / "vae" / "ae.safetensors",
        clip_l=folder / "text_encoders" / "clip_l.safetensors",
        t5xxl=folder / "text_encoders" / "t5xxl_fp16.safetensors",
        tokenizer_dir=folder / "tokenizers",
    )


def model_contents(files: ModelFiles, size: str, guidance: bool = True) -> tuple[Content, ...]:
    """The files that `write_model_files` writes, without the tokenizers."""
    numbers, torch_made = SIZES[size], {"format": "pt"}
    contents = (
        (files.transformer, transformer_shapes(numbers, guidance), torch.bfloat16, torch_made),
        (files.ae, autoencoder_shapes(numbers), torch.float32, torch_made),
        (files.clip_l, clip_shapes(numbers), torch.float16, torch_made),
        (files.t5xxl, t5_shapes(numbers), torch.float16, {}),
    )
    return tuple(Content(*each, REAL_BYTES.get(each[0].name) if size == "full" else None) for each in contents)


def write_model_files(
    folder: Path,
    size: str = "tiny",
    seed: int = 0,
    device: str | torch.device = "cpu",
    guidance: bool = True,
    keep: bool = False,
) -> ModelFiles:
    """Write the four model files and the two tokenizers to `folder`.

    guidance: False leaves guidance_in out, which makes it a FLUX.1-schnell. keep: do not write files that are already
    complete. The same seed, size and kind of device give the same bytes.
    """
    files = model_files(folder, guidance)
    for content in model_contents(files, size, guidance):
        if not (keep and content.is_whole):
            write_random_file(
                content.path, content.shapes, content.dtype, seed, device, content.metadata, content.total_bytes
            )
    write_clip_tokenizer(files.tokenizer_dir / "tokenizer")
    write_t5_tokenizer(files.tokenizer_dir / "tokenizer_2")
    return files


def transformer_shapes(size: Size, guidance: bool = True) -> Shapes:
    """The tensors of `flux1-dev.safetensors`, in Black Forest Labs' names."""
    h = size.hidden
    shapes: Shapes = _layer("img_in", h, 4 * size.vae_latents) | _layer("txt_in", h, size.t5_width)
    embedded = {"time_in": 256, "vector_in": size.clip_width} | ({"guidance_in": 256} if guidance else {})
    for name, width in embedded.items():
        shapes |= _layer(f"{name}.in_layer", h, width) | _layer(f"{name}.out_layer", h, h)
    for block in range(size.double_blocks):
        for stream in ("img", "txt"):
            name = f"double_blocks.{block}.{stream}"
            shapes |= _layer(f"{name}_mod.lin", 6 * h, h)
            shapes |= _layer(f"{name}_attn.qkv", 3 * h, h) | _layer(f"{name}_attn.proj", h, h)
            shapes |= _qk_norms(f"{name}_attn.norm", size.head_dim)
            shapes |= _layer(f"{name}_mlp.0", 4 * h, h) | _layer(f"{name}_mlp.2", h, 4 * h)
    for block in range(size.single_blocks):
        name = f"single_blocks.{block}"
        shapes |= _layer(f"{name}.linear1", 7 * h, h) | _layer(f"{name}.linear2", h, 5 * h)
        shapes |= _layer(f"{name}.modulation.lin", 3 * h, h) | _qk_norms(f"{name}.norm", size.head_dim)
    shapes |= _layer("final_layer.adaLN_modulation.1", 2 * h, h)
    return shapes | _layer("final_layer.linear", 4 * size.vae_latents, h)


def autoencoder_shapes(size: Size) -> Shapes:
    """The tensors of `ae.safetensors`, in latent diffusion's names; two resnets per level, three in the decoder."""
    widths = [size.vae_width * multiplier for multiplier in size.vae_multipliers]
    last = len(widths) - 1
    shapes: Shapes = _conv("encoder.conv_in", widths[0], 3)
    width = widths[0]
    for level, out in enumerate(widths):
        for block in range(2):
            shapes |= _resnet(f"encoder.down.{level}.block.{block}", width if block == 0 else out, out)
        width = out
        shapes |= _conv(f"encoder.down.{level}.downsample.conv", out, out) if level < last else {}
    shapes |= _middle("encoder", width) | _conv("encoder.conv_out", 2 * size.vae_latents, width)
    shapes |= _conv("decoder.conv_in", width, size.vae_latents) | _middle("decoder", width)
    for level, out in reversed(list(enumerate(widths))):
        for block in range(3):
            shapes |= _resnet(f"decoder.up.{level}.block.{block}", width if block == 0 else out, out)
        width = out
        shapes |= _conv(f"decoder.up.{level}.upsample.conv", out, out) if level else {}
    shapes |= _conv("decoder.conv_out", 3, width)
    return shapes | _layer("encoder.norm_out", widths[-1]) | _layer("decoder.norm_out", width)


def clip_shapes(size: Size) -> Shapes:
    """The tensors of `clip_l.safetensors`: the text half of CLIP, without its projection."""
    width = size.clip_width
    shapes: Shapes = {
        "text_model.embeddings.token_embedding.weight": (size.clip_vocabulary, width),
        "text_model.embeddings.position_embedding.weight": (77, width),
    }
    for layer in range(size.clip_layers):
        name = f"text_model.encoder.layers.{layer}"
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _layer(f"{name}.self_attn.{projection}", width, width)
        shapes |= _layer(f"{name}.layer_norm1", width) | _layer(f"{name}.layer_norm2", width)
        shapes |= _layer(f"{name}.mlp.fc1", size.clip_mlp, width)
        shapes |= _layer(f"{name}.mlp.fc2", width, size.clip_mlp)
    return shapes | _layer("text_model.final_layer_norm", width)


def t5_shapes(size: Size) -> Shapes:
    """The tensors of `t5xxl_fp16.safetensors`: T5 v1.1's encoder, its embedding under both names."""
    width, inner = size.t5_width, size.t5_heads * size.t5_head_dim
    shapes: Shapes = {
        "shared.weight": (size.t5_vocabulary, width),
        "encoder.embed_tokens.weight": (size.t5_vocabulary, width),
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (32, size.t5_heads),
        "encoder.final_layer_norm.weight": (width,),
    }
    for block in range(size.t5_layers):
        name = f"encoder.block.{block}.layer"
        shapes |= {f"{name}.0.SelfAttention.{letter}.weight": (inner, width) for letter in "qkv"}
        shapes[f"{name}.0.SelfAttention.o.weight"] = (width, inner)
        shapes |= {f"{name}.1.DenseReluDense.wi_{n}.weight": (size.t5_mlp, width) for n in (0, 1)}
        shapes[f"{name}.1.DenseReluDense.wo.weight"] = (width, size.t5_mlp)
        shapes |= {f"{name}.{n}.layer_norm.weight": (width,) for n in (0, 1)}
    return shapes


def write_random_file(
    path: Path,
    shapes: Mapping[str, Shape],
    dtype: torch.dtype,
    seed: int,
    device: str | torch.device = "cpu",
    metadata: Mapping[str, str] | None = None,
    total_bytes: int | None = None,
) -> None:
    """Stream one random safetensors file to disk, with its tensors in safetensors' order (by name)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    largest = max(math.prod(shape) for shape in shapes.values())
    staging = torch.empty(largest, dtype=dtype, pin_memory=torch.device(device).type == "cuda")
    unfinished = path.with_name(f".{path.name}.part")
    with unfinished.open("wb") as file:
        file.write(file_header(shapes, dtype, metadata or {}, total_bytes))
        for name, shape in sorted(shapes.items()):
            host = staging[: math.prod(shape)]
            host.copy_(random_tensor(name, shape, dtype, seed, device).flatten())
            file.write(host.view(torch.uint8).numpy().data)
    os.replace(unfinished, path)


def file_header(
    shapes: Mapping[str, Shape],
    dtype: torch.dtype,
    metadata: Mapping[str, str],
    total_bytes: int | None = None,
) -> bytes:
    """The header, byte for byte as safetensors writes it, or padded so that the file has `total_bytes`."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    begin = 0
    for name, shape in sorted(shapes.items()):
        end = begin + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    length = len(text) + -len(text) % 8 if total_bytes is None else total_bytes - begin - 8
    assert length >= len(text) and length % 8 == 0
    return length.to_bytes(8, "little") + text.ljust(length)


def random_tensor(
    name: str, shape: Shape, dtype: torch.dtype, seed: int, device: str | torch.device = "cpu"
) -> torch.Tensor:
    """Normal numbers with mean and spread that suit the tensor's role; T5's two embedding names get equal values."""
    tied = name.replace("encoder.embed_tokens", "shared")
    generator = torch.Generator(device).manual_seed(zlib.crc32(f"{seed} {tied}".encode()))
    drawn = torch.float32 if torch.device(device).type == "cpu" else dtype
    mean, spread = mean_and_spread(name, shape)
    return torch.empty(shape, dtype=drawn, device=device).normal_(mean, spread, generator=generator).to(dtype)


def mean_and_spread(name: str, shape: Shape) -> tuple[float, float]:
    """Mean and spread of a tensor: scales are around 1, biases around 0, and matrices preserve the signal's scale."""
    if len(shape) == 1:
        return (0.0, 0.02) if name.endswith("bias") else (1.0, 0.1)
    if "embed" in name or "shared" in name:
        return 0.0, 0.02 if name.startswith("text_model") else 1.0
    fan_in = math.prod(shape[1:])
    if "relative_attention_bias" in name:
        return 0.0, 0.5
    if "SelfAttention.q" in name:  # T5 does not divide scores by the square root of the head width
        return 0.0, 1 / math.sqrt(fan_in * 64)
    return 0.0, (0.5 if "mod" in name else 1.0) / math.sqrt(fan_in)


def _layer(name: str, *shape: int) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _qk_norms(name: str, head_dim: int) -> Shapes:
    return {f"{name}.query_norm.scale": (head_dim,), f"{name}.key_norm.scale": (head_dim,)}


def _conv(name: str, out: int, into: int, kernel: int = 3) -> Shapes:
    return _layer(name, out, into, kernel, kernel)


def _resnet(name: str, into: int, out: int) -> Shapes:
    shapes = _layer(f"{name}.norm1", into) | _conv(f"{name}.conv1", out, into)
    shapes |= _layer(f"{name}.norm2", out) | _conv(f"{name}.conv2", out, out)
    return shapes | (_conv(f"{name}.nin_shortcut", out, into, kernel=1) if into != out else {})


def _middle(half: str, width: int) -> Shapes:
    shapes = _resnet(f"{half}.mid.block_1", width, width) | _resnet(f"{half}.mid.block_2", width, width)
    for name in ("q", "k", "v", "proj_out"):
        shapes |= _conv(f"{half}.mid.attn_1.{name}", width, width, kernel=1)
    return shapes | _layer(f"{half}.mid.attn_1.norm", width)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write random model files in FLUX.1's layout.")
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--schnell", action="store_true", help="without guidance, as FLUX.1-schnell")
    parser.add_argument("--keep", action="store_true", help="keep files that are complete")
    given = parser.parse_args()
    files = write_model_files(given.out, given.size, given.seed, given.device, not given.schnell, given.keep)
    for path in (files.transformer, files.ae, files.clip_l, files.t5xxl):
        print(f"{path.stat().st_size:>14,} bytes  {path}")


if __name__ == "__main__":
    main()
