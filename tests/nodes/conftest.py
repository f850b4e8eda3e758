"""A real ComfyUI server, one for the session, and a maker of others."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from custom_nodes.flux_dreambooth.image_folders import ImageFolders
from tests.nodes.server import COMFYUI, NO_COMFYUI, ComfyServer, prepare_base
from tests.nodes.workbench import encoded


@pytest.fixture(scope="session")
def comfyui_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ComfyUI's base directory: models/mini, models/loras (empty), custom_nodes/flux_dreambooth, runs …"""
    return prepare_base(tmp_path_factory.mktemp("comfyui"))


@pytest.fixture(scope="session")
def comfyui(comfyui_base: Path) -> Iterator[ComfyServer]:
    """A running server that the tests share: give files names of your own."""
    if not COMFYUI:
        pytest.skip(NO_COMFYUI)
    with ComfyServer(comfyui_base) as server:
        yield server


@pytest.fixture
def start_comfyui(tmp_path: Path) -> Iterator[Callable[..., ComfyServer]]:
    """start_comfyui(*arguments, packs=(), environment=None): a server of a test's own, ended after it."""
    started: list[ComfyServer] = []

    def start(*arguments: str, packs: tuple[Path, ...] = (), environment: dict[str, str] | None = None) -> ComfyServer:
        if not COMFYUI:
            pytest.skip(NO_COMFYUI)
        folder = tmp_path / f"comfyui-{len(started)}"
        folder.mkdir()
        server = ComfyServer(prepare_base(folder, *packs), *arguments, environment=environment)
        started.append(server)
        return server.start()

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    """flux_data/ with the concept dog, a file, and a link to a folder outside."""
    folder = tmp_path / "flux_data"
    (folder / "dog").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret.png").write_bytes(encoded())
    (folder / "link").symlink_to(tmp_path / "outside")
    (folder / "file.txt").write_text("x")
    return folder


@pytest.fixture
def folders(data_root: Path) -> ImageFolders:
    return ImageFolders(data_root)
