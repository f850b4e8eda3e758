"""A training run in miniature, for tests of its state."""

import torch

from trainer.checkpoint.state import load_state, restore, save_state
from trainer.config import TrainConfig
from trainer.optim.build import OptimizerSettings, build_optimizer
from trainer.optim.ema import Ema
from trainer.optim.schedule import ScheduleSettings, build_lr_scheduler

TOTAL = 12


class Run:
    """Adapter, optimizer, schedule, averages, and gradients that depend on step and weights alone."""

    def __init__(self, name="AdamW", dtype=torch.float32, shapes=((6, 4), (4, 6), (3,)), **settings):
        torch.manual_seed(0)
        values = [torch.randn(shape) * (index != 1) for index, shape in enumerate(shapes)]
        self.parameters = {f"layer.{i}": torch.nn.Parameter(v.to(dtype)) for i, v in enumerate(values)}
        self.config = TrainConfig(
            **{"optimizer_type": name, "lr_scheduler": "cosine_with_restarts", "lr_warmup_steps": 2, **settings}
        )
        first, *rest = self.parameters.values()
        groups = [{"params": [first]}, {"params": rest, "name": "rest"}]
        self.optimizer = build_optimizer(self.config.select(OptimizerSettings), groups)
        self.scheduler = build_lr_scheduler(self.config.select(ScheduleSettings), self.optimizer, TOTAL)
        self.ema = Ema(self.parameters, decay=0.9)
        self.step = 0

    def train(self, start: int, stop: int) -> "Run":
        for step in range(start, stop):
            generator = torch.Generator().manual_seed(step)
            for parameter in self.parameters.values():
                noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                parameter.grad = (0.3 * parameter.detach() + noise).to(parameter.dtype)
            self.optimizer.step()
            self.scheduler.step()
            self.ema.update(step)
            self.step = step + 1
        return self

    def save(self, folder) -> None:
        save_state(folder, tensors=self.parameters, progress={"step": self.step, "epoch": 1.5}, **self.rest)

    def restore(self, folder, **options) -> "Run":
        restore(load_state(folder), parameters=self.parameters, **self.rest, **options)
        return self

    @property
    def rest(self):
        return {"optimizer": self.optimizer, "scheduler": self.scheduler, "ema": self.ema}

    def everything(self) -> dict:
        return {
            "parameters": dict(self.parameters),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "ema": self.ema.state_dict(),
        }


def assert_identical(a, b, path="") -> None:
    """Same types, same keys in the same order, same bits."""
    assert type(a) is type(b), path
    if isinstance(a, torch.Tensor):
        assert (a.dtype, a.shape, a.device) == (b.dtype, b.shape, b.device), path
        assert torch.equal(a.detach().view(-1).view(torch.uint8), b.detach().view(-1).view(torch.uint8)), path
    elif isinstance(a, dict):
        assert list(a) == list(b), path
        for key in a:
            assert_identical(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_identical(x, y, f"{path}/{index}")
    else:
        assert a == b or a is b, path
