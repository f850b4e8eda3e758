"""The model's two tokenizers, made from its training captions.

They have the file formats of FLUX.1's own: CLIP's byte-level BPE and T5's unigram model. Each frequent word of the
captions is one token. Any other word is split into letters (T5) or short pieces down to bytes (CLIP), so that a made-up
word can become the name of a new thing.
"""

import base64
import re
import struct
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from itertools import pairwise
from pathlib import Path

from tokenizers import pre_tokenizers

from mini.world.names import CHARACTERS
from trainer.common.files import write_json, write_text
from trainer.models.description import FLUX1

WORD = re.compile(r"[a-z0-9]+")
RARE = 4_000  # a word must occur once in this many captions to get a token
MAX_WORDS, MAX_MERGES = 1_200, 900
WORD_END, WORD_START = "</w>", "\N{LOWER ONE EIGHTH BLOCK}"
CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"
PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"  # T5's first three tokens
PRINTABLE = [chr(code) for code in range(33, 127)]


def write_tokenizers(folder: Path, captions: Iterable[str]) -> None:
    """Write `tokenizer` (CLIP) and `tokenizer_2` (T5) to `folder`, named as in the FLUX.1-dev repository."""
    words = vocabulary(captions)
    _write_clip(folder / FLUX1.clip.tokenizer, words)
    _write_t5(folder / FLUX1.t5.tokenizer, words)


def vocabulary(captions: Iterable[str]) -> list[str]:
    """The frequent words of the captions without invented names, in lower case, sorted."""
    captions = list(captions)
    counts = Counter(word for caption in captions for word in WORD.findall(caption.lower()))
    least = max(2, len(captions) // RARE)
    invented = _invented_words()
    often = [word for word, count in counts.most_common() if count >= least and word.isalpha() and word not in invented]
    return sorted(often[:MAX_WORDS])


def _invented_words() -> frozenset[str]:
    return frozenset(name.lower() for name in CHARACTERS)


def learn_merges(words: Collection[str], forbidden: Collection[str] = ()) -> list[tuple[str, str]]:
    """Byte-pair merges (Sennrich et al. 2016) that make each word one token, as far as `MAX_MERGES` allows.

    forbidden: words that must not become a token by accident.
    """
    splits = {word: [*word[:-1], word[-1] + WORD_END] for word in words}
    never = {word + WORD_END for word in forbidden}
    merges: list[tuple[str, str]] = []
    while len(merges) < MAX_MERGES:
        pairs = Counter(pair for pieces in splits.values() for pair in pairwise(pieces))
        allowed = [pair for pair in pairs if "".join(pair) not in never]
        if not allowed:
            break
        best = max(allowed, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        splits = {word: _merged(pieces, best) for word, pieces in splits.items()}
    return merges


def _merged(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    joined: list[str] = []
    for piece in pieces:
        if joined and (joined[-1], piece) == pair:
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined


def _write_clip(folder: Path, words: Collection[str]) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = learn_merges(words, _invented_words())
    tokens = [*alphabet, *(byte + WORD_END for byte in alphabet), *map("".join, merges), CLIP_START, CLIP_END]
    tokens = list(dict.fromkeys(tokens))
    write_json(folder / "vocab.json", {token: index for index, token in enumerate(tokens)})
    write_text(folder / "merges.txt", "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in merges))
    special = {"bos_token": CLIP_START, "eos_token": CLIP_END, "pad_token": CLIP_END, "unk_token": CLIP_END}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True}
    _write_settings(folder, special, config)


def _write_t5(folder: Path, words: Collection[str]) -> None:
    metaspace = {"type": "Metaspace", "replacement": WORD_START, "prepend_scheme": "always", "split": True}
    special = [PAD, END, UNKNOWN]
    sequence = [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": END, "type_id": 0}}]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_special_token(index, token) for index, token in enumerate(special)],
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(_character_map()).decode()},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": sequence,
            "pair": [*sequence, {"Sequence": {"id": "B", "type_id": 0}}, sequence[1]],
            "special_tokens": {END: {"id": END, "ids": [1], "tokens": [END]}},
        },
        "decoder": metaspace,
        "model": {"type": "Unigram", "unk_id": 2, "vocab": _t5_pieces(words), "byte_fallback": False},
    }
    write_json(folder / "tokenizer.json", tokenizer)
    named = {"eos_token": END, "pad_token": PAD, "unk_token": UNKNOWN}
    _write_settings(folder, named, {"tokenizer_class": "T5Tokenizer", "model_max_length": 512, "extra_ids": 0})


def _t5_pieces(words: Collection[str]) -> list[tuple[str, float]]:
    """Pieces and their log probabilities: a word is always more likely than its letters."""
    letters = [letter for letter in PRINTABLE if not letter.isupper()]
    pieces = {PAD: 0.0, END: 0.0, UNKNOWN: 0.0}
    pieces |= dict.fromkeys([WORD_START, *letters, *(WORD_START + letter for letter in letters)], -10.0)
    pieces |= {WORD_START + word: -1.0 for word in words}
    return list(pieces.items())


def _special_token(index: int, token: str) -> dict[str, object]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": index, "content": token, **flags}


def _character_map() -> bytes:
    """A character map in SentencePiece's format, which lowers case and puts spaces around punctuation.

    Every version of transformers keeps this normalizer. The format is a trie of 32-bit units (Darts-clone's double
    array), followed by the texts that its leaves point to. Keys are single characters, so the trie has two levels.
    """
    texts = {
        letter: letter.lower() if letter.isalpha() else f" {letter} " for letter in PRINTABLE if not letter.isdigit()
    }
    texts = {letter: text for letter, text in texts.items() if letter != text}
    to_letters, to_leaves = 256, 512  # a child is at (parent's position xor offset xor label)
    units, blob = [0] * 1024, b""
    units[0] = to_letters << 10
    for letter, text in texts.items():
        position = to_letters ^ ord(letter)
        units[position] = to_leaves << 10 | 1 << 8 | ord(letter)  # bit 8: a key ends here
        units[position ^ to_leaves] = 1 << 31 | len(blob)
        blob += text.encode() + b"\0"
    return struct.pack("<I1024I", 4 * len(units), *units) + blob


def _write_settings(folder: Path, special: Mapping[str, str], config: Mapping[str, object]) -> None:
    write_json(folder / "special_tokens_map.json", special)
    write_json(folder / "tokenizer_config.json", {**special, **config})
