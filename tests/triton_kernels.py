"""Where kernels written in Triton can be tried: on a GPU, or by Triton's interpreter on the CPU."""

import os
from importlib.util import find_spec

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
needs_triton = pytest.mark.skipif(
    not (torch.cuda.is_available() or (INTERPRETED and find_spec("triton"))),
    reason="needs a CUDA device, or: pip install triton 'numpy<2.3', and TRITON_INTERPRET=1",
)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
