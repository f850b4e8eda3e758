"""Routes for images, captions, dataset files and presets. docs/reference/workbench.md of the project describes them."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import caption_edits
from .answers import PREFIX, Busy, answers, as_download, our_body, picture, require_ours, text_of, upload
from .dataset_files import DatasetFiles
from .exchange.job_file import MAX_JOB
from .folder_entries import MAX_CAPTION
from .image_check import MAX_BYTES, SIDES
from .image_folders import ImageFolders

MAX_UPLOADS = 4  # at the same time; each is held in memory
MAX_NAME = 300
A_DAY = 86_400


def add_routes(routes: Any, root: Path, is_demo: bool = False) -> None:
    """routes: aiohttp's RouteTableDef. root: the folder flux_data/, which need not exist.

    is_demo: whether ComfyUI was started with --demo.
    """
    folders = ImageFolders(root)
    files = DatasetFiles(root, folders)
    _add_image_routes(routes, folders)
    _add_caption_routes(routes, folders)
    _add_file_routes(routes, files, is_demo)


def _add_image_routes(routes: Any, folders: ImageFolders) -> None:
    uploads = 0

    async def take(request: Any, keep: Callable[[str, bytes], Any]) -> Any:
        """Hand an uploaded file to `keep`, with the concept's name."""
        nonlocal uploads
        require_ours(request)
        concept = request.match_info["concept"]
        await asyncio.to_thread(folders.folder, concept)  # before anything is read
        if uploads >= MAX_UPLOADS:
            raise Busy("Several files are being uploaded already. Send this one again in a moment.")
        uploads += 1
        try:
            data = await upload(request, MAX_BYTES)
            return await asyncio.to_thread(keep, concept, data)
        finally:
            uploads -= 1

    @routes.get(PREFIX + "/data")
    @answers
    async def overview(_request: Any) -> Any:
        return await asyncio.to_thread(folders.overview)

    @routes.post(PREFIX + "/data")
    @answers
    async def create(request: Any) -> Any:
        name = text_of(await our_body(request), "name", MAX_NAME)
        return await asyncio.to_thread(folders.create, name)

    @routes.get(PREFIX + "/data/{concept}")
    @answers
    async def details(request: Any) -> Any:
        def read() -> dict[str, Any]:
            found = folders.details(request.match_info["concept"])
            return found | {"can_undo": caption_edits.can_undo(folders.folder(found["name"]))}

        return await asyncio.to_thread(read)

    @routes.post(PREFIX + "/data/{concept}/images")
    @answers
    async def add(request: Any) -> Any:
        name = request.query.get("name", "")[:MAX_NAME]
        return await take(request, lambda concept, data: folders.add(concept, name, data))

    @routes.post(PREFIX + "/data/{concept}/masks")
    @answers
    async def add_mask(request: Any) -> Any:
        image = request.query.get("image", "")[:MAX_NAME]
        return await take(request, lambda concept, data: folders.add_mask(concept, image, data))

    @routes.get(PREFIX + "/data/{concept}/images/{file}")
    @answers
    async def image(request: Any) -> Any:
        where, side = request.match_info, request.query.get("side", str(SIDES[0]))
        size = int(side) if side.isdecimal() and len(side) < 6 else 0
        masked = request.query.get("mask") == "1"
        data = await asyncio.to_thread(folders.preview, where["concept"], where["file"], size, masked)
        return picture(data, "image/jpeg", A_DAY if "version" in request.query else 0)


def _add_caption_routes(routes: Any, folders: ImageFolders) -> None:
    async def with_folder(request: Any, work: Callable[[Path], Any]) -> Any:
        return await asyncio.to_thread(lambda: work(folders.folder(request.match_info["concept"])))

    @routes.post(PREFIX + "/data/{concept}/captions")
    @answers
    async def write(request: Any) -> Any:
        body = await our_body(request)
        file, text = text_of(body, "file", MAX_NAME), text_of(body, "text", 2 * MAX_CAPTION)
        was = None if body.get("was") is None else text_of(body, "was", 4 * MAX_CAPTION)
        return await with_folder(request, lambda folder: caption_edits.write(folder, file, text, was))

    @routes.post(PREFIX + "/data/{concept}/replace")
    @answers
    async def replace(request: Any) -> Any:
        body = await our_body(request)
        find, new = text_of(body, "find", MAX_CAPTION), text_of(body, "replace", MAX_CAPTION)
        preview = body.get("preview", False) is not False
        return await with_folder(request, lambda folder: caption_edits.replace_all(folder, find, new, preview))

    @routes.post(PREFIX + "/data/{concept}/undo")
    @answers
    async def undo(request: Any) -> Any:
        await our_body(request)
        return await with_folder(request, caption_edits.undo)


def _add_file_routes(routes: Any, files: DatasetFiles, is_demo: bool) -> None:
    @routes.get(PREFIX + "/datasets")
    @answers
    async def datasets(_request: Any) -> Any:
        return {"datasets": await asyncio.to_thread(files.datasets)}

    @routes.post(PREFIX + "/datasets")
    @answers
    async def write_dataset(request: Any) -> Any:
        return await asyncio.to_thread(files.write_dataset, await our_body(request))

    @routes.get(PREFIX + "/presets")
    @answers
    async def presets(_request: Any) -> Any:
        usual = await asyncio.to_thread(files.usual_preset, is_demo)
        return {"presets": await asyncio.to_thread(files.presets), "usual": usual}

    @routes.post(PREFIX + "/presets")
    @answers
    async def write_preset(request: Any) -> Any:
        return await asyncio.to_thread(files.write_preset, await our_body(request))

    @routes.get(PREFIX + "/presets/file")
    @answers
    async def read_preset(request: Any) -> Any:
        file = request.query.get("file", "")[:MAX_NAME]
        return as_download(await asyncio.to_thread(files.preset_content, file), Path(file).name)

    @routes.post(PREFIX + "/presets/file")
    @answers
    async def add_preset(request: Any) -> Any:
        require_ours(request)
        name = request.query.get("name", "")[:MAX_NAME]
        data = await upload(request, MAX_JOB)
        return await asyncio.to_thread(files.add_preset, name, data)
