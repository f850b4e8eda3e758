"""Where an image attends to words: FLUX's own attention from image tokens to text tokens, averaged. Uses torch.

Queries and keys are taken after their norms and before the rotation by position: the text is at position zero, and the
rotation would only make the answer depend on where in the image the question is asked.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .words import Span

SMALLEST_SHARE = 1e-8  # before a logarithm is taken
HEADS_AT_ONCE = 4  # bounds the memory for scores: [B, 4, I, L] in float32


class AttentionMaps:
    """How much each image token attends to each group of words: means over all attentions that were added."""

    def __init__(self, words: Sequence[Sequence[Sequence[Span]]], lengths: Sequence[int], device: torch.device | str):
        """words: for each image of the batch and each group, the spans of its words, in tokens; lengths: for each
        image, how many tokens its text has without padding, to which attention is limited."""
        self._words = token_masks(words, max(lengths), device)
        self._real = token_masks([[[(0, length)]] for length in lengths], max(lengths), device)[:, 0] > 0
        self._sum: Tensor | float = 0.0
        self._log_sum: Tensor | float = 0.0
        self._count = 0

    def add(self, queries: Tensor, keys: Tensor) -> None:
        """Add one layer's attention. queries: of the image tokens, [B, I, heads, head width]; keys: of the text tokens,
        [B, L, heads, head width], both normed and not rotated."""
        length, (num_heads, width) = self._real.shape[1], queries.shape[-2:]
        share = queries.new_zeros(len(queries), self._words.shape[1], queries.shape[1], dtype=torch.float32)
        for start in range(0, num_heads, HEADS_AT_ONCE):
            some = slice(start, start + HEADS_AT_ONCE)
            query, key = queries[:, :, some].transpose(1, 2).float(), keys[:, :length, some].transpose(1, 2).float()
            scores = query @ key.transpose(-1, -2) / width**0.5
            scores = scores.masked_fill(~self._real[:, None, None], float("-inf"))
            share += torch.einsum("bhil,bcl->bci", scores.softmax(-1), self._words)
        share /= num_heads
        self._sum, self._log_sum = self._sum + share, self._log_sum + share.clamp_min(SMALLEST_SHARE).log()
        self._count += 1

    def mean(self) -> Tensor:
        """[B, groups, I] in float32: the share of an image token's attention to the text that goes to a group's words.

        Says where the things are that the words name. Zero for a group without words.
        """
        assert isinstance(self._sum, Tensor), "no attention was added"
        return self._sum / self._count

    def log_mean(self) -> Tensor:
        """[B, groups, I] in float32: the mean of the logarithms of the same shares.

        Says whose a place is: layers with little attention to the words, which often tell two things apart best, count
        as much as others.
        """
        assert isinstance(self._log_sum, Tensor), "no attention was added"
        return self._log_sum / self._count


def token_masks(spans: Sequence[Sequence[Sequence[Span]]], length: int, device: torch.device | str) -> Tensor:
    """Masks over tokens, [B, groups, length] in float32, 1 within the spans and 0 elsewhere.

    spans: for each image of the batch and each group, spans in tokens; what is beyond `length` is cut off.
    """
    masks = torch.zeros(len(spans), len(spans[0]), length)
    for row, groups in enumerate(spans):
        for group, parts in enumerate(groups):
            for start, end in parts:
                masks[row, group, start:end] = 1
    return masks.to(device)


def recorded_steps(num_steps: int) -> range:
    """The sampling steps whose attention is averaged: from a tenth to three fifths of them, at least one.

    Before that there is only noise to attend from; after it, the layout does not change any more.
    """
    first = round(0.1 * num_steps)
    return range(first, max(first + 1, round(0.6 * num_steps)))
