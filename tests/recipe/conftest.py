"""The recipe tests train a very small FLUX for a few steps and look at what a user would get."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.random_flux import ModelFiles
from tests.job_queue import DATASET
from tests.recipe_files import Workshop, make_workshop
from trainer.cli.serve import QUEUE
from trainer.exchange.job_queue import JobQueue


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, tiny_flux: ModelFiles) -> Iterator[Workshop]:
    """Model files, five pictures, a data.toml, and the same date in every file that is written."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny matrices wait longer for each other than they compute
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", "1700000000")
        yield make_workshop(tmp_path_factory.mktemp("workshop"), tiny_flux)
    torch.set_num_threads(threads)


@pytest.fixture
def queue(in_tmp: Path, workshop: Workshop) -> JobQueue:
    """A repository's folders, with links to the workshop's models and images, and LoRA files of its own."""
    for folder in ("flux_data", "models", "models/loras"):
        (in_tmp / folder).mkdir()
    for folder in workshop.models.transformer.parents[1].iterdir():
        if folder.name != "loras":
            (in_tmp / "models" / folder.name).symlink_to(folder)
    (in_tmp / "flux_data/toy").symlink_to(workshop.folder / "toy")
    (in_tmp / "flux_data/data.toml").write_text(DATASET)
    return JobQueue(QUEUE)
