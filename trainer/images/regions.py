"""Connected regions of a mask."""

import numpy as np
import torch


def regions(mask: torch.Tensor) -> torch.Tensor:
    """A number from 1 for each region of pixels that touch by a side, the same for all of its pixels; 0 elsewhere.

    mask: [H, W] bool. Returns [H, W] int64. Each run of a row is joined with those of the row above that it touches.
    """
    height, width = mask.shape
    changes = np.diff(np.pad(mask.numpy().astype(np.int8), ((0, 0), (1, 1))), axis=1)
    rows, starts = np.nonzero(changes == 1)
    _, ends = np.nonzero(changes == -1)
    parents = list(range(len(rows)))

    def root(run: int) -> int:
        while parents[run] != run:
            parents[run] = run = parents[parents[run]]
        return run

    first = np.searchsorted(rows, np.arange(height + 1))
    for row in range(1, height):
        above, own = first[row - 1], first[row]
        while above < first[row] and own < first[row + 1]:
            if starts[above] < ends[own] and starts[own] < ends[above]:
                parents[root(int(own))] = root(int(above))
            if ends[above] <= ends[own]:
                above += 1
            else:
                own += 1
    labels = np.zeros(height * width, np.int64)
    numbers = {each: number for number, each in enumerate(dict.fromkeys(map(root, range(len(rows)))), 1)}
    for run, (row, start, end) in enumerate(zip(rows, starts, ends, strict=True)):
        labels[row * width + start : row * width + end] = numbers[root(run)]
    return torch.from_numpy(labels.reshape(height, width))
