"""Damaged LoRA files: whatever happened to one, `info` and the nodes say so in a sentence that names the file."""

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from custom_nodes.flux_dreambooth.lora_loading import load
from custom_nodes.flux_dreambooth.nodes_lora import described, report_of
from custom_nodes.flux_dreambooth.report import as_text
from tests.nodes.lora_layouts import LAYOUTS, make_clip_layers, make_layers, write_layout
from trainer.common.problems import Problems
from trainer.lora.file import load_lora, load_lora_shapes
from trainer.lora.info import describe, render

LAYERS, CLIP = make_layers(hidden=16, double=1, single=1, rank=2), make_clip_layers(width=8, layers=1, mlp=16, rank=2)
KINDS = ("truncated", "header", "numbers", "other", "metadata")
FILES_OF_A_KIND = 40


def info(path: Path) -> str:
    return render(describe(path))


def report(path: Path) -> str:
    return as_text(report_of(described(path)))


READERS = (info, report, load, load_lora, load_lora_shapes)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("good")
    return [write_layout(folder / f"{name}.safetensors", name, LAYERS, CLIP).read_bytes() for name in LAYOUTS]


def damaged(data: bytes, kind: str, dice: random.Random) -> bytes:
    length = int.from_bytes(data[:8], "little")
    if kind == "truncated":
        return data[: dice.randrange(len(data))]
    if kind in ("header", "numbers"):
        begin, end = (0, 8 + length) if kind == "header" else (8 + length, len(data))
        changed = bytearray(data)
        for _ in range(dice.choice((1, 3, 30))):
            changed[dice.randrange(begin, end)] ^= 1 << dice.randrange(8)
        return bytes(changed)
    if kind == "other":
        starts = (b"PK\x03\x04", b"\x80\x04", b"GGUF", b"<html>", b"{", b"version https://git-lfs", b"\x89PNG", b"")
        return dice.choice(starts) + dice.randbytes(dice.choice((0, 7, 500)))
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dice.choice(
        (
            {key: random_text(dice) for key in KEYS},
            {key: random_value(dice) for key in KEYS},
            dice.choice(([], "text", 3, None, [[1]], {"a": {"b": 1}})),
        )
    )
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


KEYS = """
flux_dreambooth lora_adapter_metadata lora_alpha use_rslora ss_datasets ss_tag_frequency ss_dataset_dirs ss_steps
ss_epoch ss_network_alpha ss_network_dim modelspec.trigger_phrase modelspec.title modelspec.architecture software other
""".split()


def random_value(dice: random.Random, depth: int = 0) -> object:
    simple = (None, True, 0, -1, 1e400, 7.5, "", "None", "x" * 300, "\0\x1b[31m", "9" * 5000, '{"lora_alpha": "x"}')
    if depth > 2 or dice.random() < 0.5:
        return dice.choice(simple)
    if dice.random() < 0.5:
        return [random_value(dice, depth + 1) for _ in range(dice.randrange(3))]
    names = (
        "subsets",
        "concepts",
        "config",
        "transformer.lora_alpha",
        "transformer.alpha_pattern",
        "to_q(",
        "image_dir",
    )
    return {dice.choice(names): random_value(dice, depth + 1) for _ in range(3)}


def random_text(dice: random.Random) -> str:
    value = random_value(dice)
    return value if isinstance(value, str) else dice.choice((json.dumps(value), "[" * 100_000, "{", str(value)))


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_named_and_never_a_traceback(kind: str, good: list[bytes], tmp_path: Path):
    dice, said, read = random.Random(f"lora {kind}"), 0, 0
    for number in range(FILES_OF_A_KIND):
        path = tmp_path / f"damaged{number}.safetensors"
        path.write_bytes(damaged(dice.choice(good), kind, dice))
        for reader in (
            lambda p: render(describe(p)),
            lambda p: as_text(report_of(described(p))),
            load_lora,
            load,
            load_lora_shapes,
        ):
            try:
                reader(path)
                read += 1
            except (Problems, ValueError) as error:
                assert path.name in str(error) and len(str(error)) < 2000, error
                said += 1
    assert said + read == len(READERS) * FILES_OF_A_KIND
    expected = {"truncated": said, "header": said, "numbers": read, "other": said, "metadata": read}
    assert expected[kind] > 2 * FILES_OF_A_KIND


def test_a_number_that_became_nan_is_refused_by_loaders_and_shown_by_reports(good: list[bytes], tmp_path: Path):
    data = bytearray(good[0])
    data[-4:] = b"\0\0\xc0\x7f"
    path = tmp_path / "nan.safetensors"
    path.write_bytes(data)
    assert describe(path)["not_finite"]
    assert "NOT FINITE" in report(path)
    for reader in (load_lora, load):
        with pytest.raises(ValueError, match=r"nan\.safetensors.* not finite"):
            reader(path)


def matrices(*names: str, dtype: torch.dtype = torch.float32, extra: str = "") -> dict[str, torch.Tensor]:
    shapes = {f"{name}.lora_{side}.weight": shape for name in names for side, shape in (("A", (2, 16)), ("B", (16, 2)))}
    return {key: torch.ones(shape).to(dtype) for key, shape in shapes.items()} | (
        {extra: torch.ones(1)} if extra else {}
    )


QUERY = "transformer.transformer_blocks.0.attn.to_q"


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (matrices(QUERY, dtype=torch.int8), "quantized to int8"),
        (matrices(QUERY, extra=f"{QUERY}.lora_A.scale_weight"), "1 key is of no known kind"),
        (matrices(QUERY, extra=f"{QUERY}.lora_A.weight_scale"), "1 key is of no known kind"),
        (matrices(QUERY, QUERY.replace("0", "19")), "more blocks than FLUX.1, such as Qwen-Image"),
        (matrices(QUERY, "transformer.single_transformer_blocks.38.attn.to_q"), "of no layer of FLUX.1"),
    ],
)
def test_what_another_model_or_a_quantizer_wrote_is_not_read_as_flux(tmp_path: Path, tensors, words: str):
    path = tmp_path / "x.safetensors"
    save_file(tensors, path)
    for read in (load_lora, load_lora_shapes):
        with pytest.raises(Problems, match=words):
            read(path)
