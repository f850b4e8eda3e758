"""FLUX.1's transformer and autoencoder as functions of their files' own tensors.

Written from the published architecture, in the files' names, with nothing shared with diffusers or
with the trainer, so that a wrong key map cannot agree with it.
"""

import math

import torch
from torch.nn import functional as F

Tensors = dict[str, torch.Tensor]


def linear(weights: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def embed_scalar(weights: Tensors, name: str, values: torch.Tensor) -> torch.Tensor:
    """values in thousandths-free units (0..1 for time); sinusoid of 256, cosines first."""
    frequencies = torch.exp(-math.log(10000) * torch.arange(128) / 128)
    angles = 1000 * values[:, None] * frequencies
    return embed_vector(weights, name, torch.cat([angles.cos(), angles.sin()], dim=-1))


def embed_vector(weights: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    return linear(weights, f"{name}.out_layer", F.silu(linear(weights, f"{name}.in_layer", x)))


def rotate(x: torch.Tensor, ids: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    """x: [B, H, L, D], pairs of neighbours turned by the angles of three positions; ids: [L, 3]."""
    angles = torch.cat(
        [ids[:, axis, None] * 10000 ** -(torch.arange(0, width, 2) / width) for axis, width in enumerate(axes)],
        dim=-1,
    )
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


def heads(weights: Tensors, norm: str, qkv: torch.Tensor, head_dim: int) -> list[torch.Tensor]:
    """q, k (each RMS-normalised) and v as [B, H, L, D]."""
    q, k, v = (part.unflatten(-1, (-1, head_dim)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    q, k = (
        x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weights[f"{norm}.{which}_norm.scale"]
        for x, which in ((q, "query"), (k, "key"))
    )
    return [q, k, v]


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ids: torch.Tensor, axes: tuple[int, ...]):
    q, k = rotate(q, ids, axes), rotate(k, ids, axes)
    scores = (q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(-2)


def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (1 + scale) * F.layer_norm(x, x.shape[-1:], eps=1e-6) + shift


def modulation(weights: Tensors, name: str, vec: torch.Tensor, count: int) -> tuple[torch.Tensor, ...]:
    return linear(weights, name, F.silu(vec))[:, None].chunk(count, dim=-1)


def double_block(w: Tensors, b: str, img, txt, vec, ids, axes):
    streams, parts = {"txt": txt, "img": img}, {}
    mods = {name: modulation(w, f"{b}.{name}_mod.lin", vec, 6) for name in streams}
    for name, x in streams.items():
        qkv = linear(w, f"{b}.{name}_attn.qkv", modulate(x, mods[name][0], mods[name][1]))
        parts[name] = heads(w, f"{b}.{name}_attn.norm", qkv, sum(axes))
    joined = [torch.cat(pair, dim=2) for pair in zip(parts["txt"], parts["img"], strict=True)]
    attended = attend(*joined, ids, axes)
    outputs = {"txt": attended[:, : txt.shape[1]], "img": attended[:, txt.shape[1] :]}
    for name, x in streams.items():
        _, _, gate1, shift2, scale2, gate2 = mods[name]
        x = x + gate1 * linear(w, f"{b}.{name}_attn.proj", outputs[name])
        hidden = F.gelu(linear(w, f"{b}.{name}_mlp.0", modulate(x, shift2, scale2)), approximate="tanh")
        streams[name] = x + gate2 * linear(w, f"{b}.{name}_mlp.2", hidden)
    return streams["img"], streams["txt"]


def single_block(w: Tensors, b: str, x, vec, ids, axes):
    shift, scale, gate = modulation(w, f"{b}.modulation.lin", vec, 3)
    fused = linear(w, f"{b}.linear1", modulate(x, shift, scale))
    qkv, mlp = fused[..., : 3 * x.shape[-1]], fused[..., 3 * x.shape[-1] :]
    attended = attend(*heads(w, f"{b}.norm", qkv, sum(axes)), ids, axes)
    return x + gate * linear(w, f"{b}.linear2", torch.cat([attended, F.gelu(mlp, approximate="tanh")], dim=-1))


def flux(w: Tensors, img, txt, pooled, time, guidance, ids, axes=(16, 56, 56)) -> torch.Tensor:
    """img: [B, L, 64]; txt: [B, T, D]; ids: [T + L, 3]; guidance: [B] or None. Returns [B, L, 64]."""
    vec = embed_scalar(w, "time_in", time) + embed_vector(w, "vector_in", pooled)
    if guidance is not None:
        vec = vec + embed_scalar(w, "guidance_in", guidance)
    img, txt = linear(w, "img_in", img), linear(w, "txt_in", txt)
    for block in range(1 + max(int(n.split(".")[1]) for n in w if n.startswith("double_blocks"))):
        img, txt = double_block(w, f"double_blocks.{block}", img, txt, vec, ids, axes)
    x = torch.cat([txt, img], dim=1)
    for block in range(1 + max(int(n.split(".")[1]) for n in w if n.startswith("single_blocks"))):
        x = single_block(w, f"single_blocks.{block}", x, vec, ids, axes)
    shift, scale = modulation(w, "final_layer.adaLN_modulation.1", vec, 2)
    return linear(w, "final_layer.linear", modulate(x[:, txt.shape[1] :], shift, scale))


def conv(w: Tensors, name: str, x: torch.Tensor, stride: int = 1, padding: int | None = None) -> torch.Tensor:
    weight = w[f"{name}.weight"]
    padding = weight.shape[-1] // 2 if padding is None else padding
    return F.conv2d(x, weight, w[f"{name}.bias"], stride=stride, padding=padding)


def norm(w: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.group_norm(x, 32, w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-6)


def resnet(w: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    h = conv(w, f"{name}.conv1", F.silu(norm(w, f"{name}.norm1", x)))
    h = conv(w, f"{name}.conv2", F.silu(norm(w, f"{name}.norm2", h)))
    return h + (conv(w, f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in w else x)


def middle(w: Tensors, half: str, x: torch.Tensor) -> torch.Tensor:
    x = resnet(w, f"{half}.mid.block_1", x)
    h = norm(w, f"{half}.mid.attn_1.norm", x)
    q, k, v = (conv(w, f"{half}.mid.attn_1.{letter}", h).flatten(2) for letter in "qkv")
    attention = (q.transpose(1, 2) @ k / math.sqrt(q.shape[1])).softmax(-1)
    h = (v @ attention.transpose(1, 2)).view_as(h)
    return resnet(w, f"{half}.mid.block_2", x + conv(w, f"{half}.mid.attn_1.proj_out", h))


def encode(w: Tensors, x: torch.Tensor, levels: int = 4) -> torch.Tensor:
    """Pixels [B, 3, H, W] to the posterior's mean [B, 16, H/8, W/8]."""
    h = conv(w, "encoder.conv_in", x)
    for level in range(levels):
        for block in range(2):
            h = resnet(w, f"encoder.down.{level}.block.{block}", h)
        if level < levels - 1:
            h = conv(w, f"encoder.down.{level}.downsample.conv", F.pad(h, (0, 1, 0, 1)), stride=2, padding=0)
    h = middle(w, "encoder", h)
    return conv(w, "encoder.conv_out", F.silu(norm(w, "encoder.norm_out", h))).chunk(2, dim=1)[0]


def decode(w: Tensors, z: torch.Tensor, levels: int = 4) -> torch.Tensor:
    """Unscaled latents [B, 16, H/8, W/8] to pixels [B, 3, H, W]."""
    h = middle(w, "decoder", conv(w, "decoder.conv_in", z))
    for level in reversed(range(levels)):
        for block in range(3):
            h = resnet(w, f"decoder.up.{level}.block.{block}", h)
        if level:
            h = conv(w, f"decoder.up.{level}.upsample.conv", F.interpolate(h, scale_factor=2.0))
    return conv(w, "decoder.conv_out", F.silu(norm(w, "decoder.norm_out", h)))
