"""The blocks that training runs against diffusers' own: outputs, and every gradient."""

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from tests.parity.test_transformer import CPU, HEIGHT, TXT, WIDTH, make_transformer
from trainer.lora import projection
from trainer.lora.adapter import adapter_parameters, add_lora, linear_modules
from trainer.lora.blocks import DoubleBlock, SingleBlock, use_training_blocks
from trainer.models.transformer import Conditioning, predict_velocity, rotary_table

SIGMAS = torch.tensor([0.3, 0.8])


def adapted(ranks: dict[str, int], ours: bool) -> FluxTransformer2DModel:
    """The same numbers whichever blocks run."""
    transformer = make_transformer()
    if ours:
        use_training_blocks(transformer)
    if ranks:
        add_lora(transformer, ranks, 4.0, seed=0)
    generator = torch.Generator().manual_seed(4)
    for parameter in adapter_parameters(transformer).values():
        nn.init.normal_(parameter, 0.0, 0.2, generator=generator)
    return transformer


def results(transformer: FluxTransformer2DModel, masked: bool, checkpointed: int) -> list[Tensor]:
    """The velocity, and the gradients of the latents, the text and the adapter."""
    generator = torch.Generator().manual_seed(5)
    noisy = torch.randn(2, 4, HEIGHT, WIDTH, generator=generator).requires_grad_()
    txt = torch.randn(2, TXT, 24, generator=generator).requires_grad_()
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool) if masked else None
    text = Conditioning(txt, torch.randn(2, 20, generator=generator), mask)
    rotary = rotary_table(transformer, HEIGHT, WIDTH, TXT, CPU)
    velocity = predict_velocity(transformer, noisy, SIGMAS, text, 3.5, rotary, checkpointed)
    loss = (velocity * torch.randn(velocity.shape, generator=generator)).sum()
    return [velocity.detach(), *torch.autograd.grad(loss, [noisy, txt, *adapter_parameters(transformer).values()])]


NAMES = linear_modules(make_transformer())
RANKS = {
    "no adapter": {},
    "every layer": dict.fromkeys(NAMES, 4),
    "attention alone": dict.fromkeys((name for name in NAMES if ".attn." in name), 4),
    "some of the layers that share an input": dict.fromkeys((name for name in NAMES if "to_q" in name), 4),
    "two ranks": {name: 2 if "to_k" in name else 4 for name in NAMES},
}


@pytest.mark.parametrize("masked, checkpointed", [(False, 0), (True, 0), (False, 3)], ids=["", "masked", "recomputed"])
@pytest.mark.parametrize("recomputed", [True, False], ids=["as on a GPU", "as on a CPU"])
@pytest.mark.parametrize("ranks", RANKS.values(), ids=RANKS)
def test_outputs_and_gradients_are_diffusers(monkeypatch, ranks, recomputed, masked, checkpointed):
    monkeypatch.setattr(projection, "_recomputes_gelu", lambda _x: recomputed)
    expected = results(adapted(ranks, ours=False), masked, checkpointed)
    found = results(adapted(ranks, ours=True), masked, checkpointed)
    assert len(found) == 3 + 2 * len(ranks)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_every_block_is_ours_and_named_as_before():
    before, transformer = make_transformer(), make_transformer()
    use_training_blocks(transformer)
    kinds = [type(block) for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks)]
    assert kinds == [DoubleBlock] * 2 + [SingleBlock] * 2
    assert transformer.state_dict().keys() == before.state_dict().keys()
