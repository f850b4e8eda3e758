"""Whether a training run goes on: from its log, and from the lock that the trainer holds while it lives."""

from pathlib import Path
from typing import Literal

from .lora_files import label_of
from .training_log import Checkpoint, TrainingLog, open_regular

try:
    import fcntl
except ImportError:  # Windows: only the log's age tells
    fcntl = None

State = Literal["preparing", "running", "quiet", "stopped", "ended", "finished"]
LISTENING = ("preparing", "running", "quiet")  # states in which a run may still look for `save` and `stop`
LOCK = ".lock"  # in a run's folder, locked by its trainer
QUIET_AFTER = 90.0  # seconds without a line, or ten steps, whichever is longer
GONE_AFTER = 15.0  # the same for a run that no trainer holds, or three steps: some file systems lose locks
GIVEN_UP_AFTER = 3600.0


def state_of(folder: Path, output_name: str, log: TrainingLog, age: float) -> State:
    """The state of a run.

    output_name: of its LoRA files, which is the folder's name unless somebody renamed that. age: seconds since the
    run last wrote something.
    """
    last = log.last
    if isinstance(last, Checkpoint) and _is_final(last, output_name, log):
        return "finished"
    seconds = next((step.seconds for step in reversed(log.steps) if step.seconds), None) or 0.0
    can_resume = isinstance(last, Checkpoint) and last.with_state
    lives = has_trainer(folder)
    if lives is False and age > max(GONE_AFTER, 3 * seconds):
        return "stopped" if can_resume else "ended"
    if age <= max(QUIET_AFTER, 10 * seconds):
        return "running" if last else "preparing"
    if not lives and (can_resume or age > GIVEN_UP_AFTER):
        return "stopped"
    return "quiet" if last else "preparing"


def _is_final(last: Checkpoint, output_name: str, log: TrainingLog) -> bool:
    is_at_end = log.start is not None and last.step >= log.start.total
    return last.file == f"{output_name}.safetensors" or (is_at_end and label_of(last.file) == "final")


def has_trainer(folder: Path) -> bool | None:
    """Whether a process holds the run's lock; None if that cannot be known.

    The lock is shared for an instant; a trainer that starts meanwhile tries again.
    """
    if fcntl is None:
        return None
    try:
        with open_regular(folder / LOCK) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            fcntl.flock(file, fcntl.LOCK_UN)
            return False
    except OSError:
        return None
