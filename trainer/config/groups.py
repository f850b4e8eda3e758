"""How a setting is declared: its default, help, difference from kohya's and group."""

from dataclasses import field
from functools import partial
from typing import Any

SAME = "same"  # as in kohya's trainer, default included
OURS = "ours"  # kohya has no such flag


def setting(default: Any, help: str, kohya: str = SAME, *, group: str, **rules: Any) -> Any:
    """A dataclass field that declares a setting.

    help: what it does, for --help; kohya: how it differs from kohya's flag, or SAME or OURS; group: its heading in
    --help; rules: its bounds, as fields of `trainer.config.fields.Spec`.
    """
    return field(default=default, metadata={"help": help, "kohya": kohya, "group": group, "rules": rules})


models = partial(setting, group="Models")
data = partial(setting, group="Data")
captions = partial(setting, group="Captions")
output = partial(setting, group="Output")
network = partial(setting, group="Network")
optimizer = partial(setting, group="Optimizer")
training = partial(setting, group="Training")
memory = partial(setting, group="Memory")
loss = partial(setting, group="Timesteps and loss")
watching = partial(setting, group="Watching")
