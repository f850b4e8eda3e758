"""The HTTP routes of the node pack: GET reads; POST saves or stops a run, checks a prompt, keeps triggers or
writes them into a file, or seeds workflows. `routes_jobs`, `routes_plan` and `routes_data` have those for jobs, plans,
images and captions.

Every answer is JSON (pictures and reports apart); an error is {"error": a sentence} with a fitting status.
"""

import asyncio
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from . import nodes_prompt, page_prompt, routes_data, routes_jobs, routes_plan, routes_report, user_folder
from .answers import PREFIX, answers, json_body, picture
from .concepts import build_prompt
from .image_folders import find_data_dir
from .loaded_loras import comfyui_classes, comfyui_names
from .lora_file.concepts import Concept
from .lora_files import by_run, lora_path
from .page_prompt import MAX_LORAS
from .runs import NotNow, Runs, find_runs_dir
from .triggers import FILE, edited_concepts, keep_triggers, write_into_file

MAX_NODES = 16  # instances of one subgraph that are asked about together
DEMO = "mini_"  # begins the names of the tiny FLUX's workflows
MAX_GRAPH = 4 * 2**20  # bytes of a body that holds a graph


def register(server: Any) -> None:
    """Add the routes to ComfyUI's server; each is at /flux_dreambooth/… and at /api/flux_dreambooth/…."""
    import folder_paths

    pack = Path(__file__).parent
    runs = Runs(find_runs_dir(os.environ, Path(folder_paths.base_path), pack))
    data = find_data_dir(os.environ, Path(folder_paths.base_path), pack)
    add_routes(server.routes, runs, lambda: folder_paths.get_filename_list("loras"))
    first = first_workflow(os.environ, pack)
    routes_data.add_routes(server.routes, data, is_demo=(first["name"] or "").startswith(DEMO))
    routes_jobs.add_routes(server.routes, runs.folder, data)
    routes_plan.add_routes(server.routes, runs.folder, data)
    routes_report.add_routes(server.routes, runs.folder)
    add_first_start(server.routes, server.user_manager, first, pack / "example_workflows")


def first_workflow(environment: Mapping[str, str], pack: Path) -> dict[str, Any]:
    """name: the workflow that a new browser opens (FLUX_FIRST_WORKFLOW), or None; ours: all of the project's."""
    ours = sorted(path.stem for path in (pack / "example_workflows").glob("*.json"))
    name = environment.get("FLUX_FIRST_WORKFLOW")
    return {"name": name if name in ours else None, "ours": ours}


def add_first_start(routes: Any, users: Any, first: dict[str, Any], workflows: Path) -> None:
    """The first workflow, and our workflows for a user who has none of them yet (--multi-user).

    users: ComfyUI's UserManager. first: of `first_workflow`. workflows: the folder of the project's.
    """

    def folder(request: Any) -> Path:
        record = users.get_request_user_filepath(request, user_folder.RECORD, create_dir=False)
        return Path(record).parent

    @routes.get(PREFIX + "/first_workflow")
    @answers
    async def first_one(request: Any) -> Any:
        return {**first, "seeded": user_folder.was_seeded(folder(request))}

    @routes.post(PREFIX + "/first_workflow")
    @answers
    async def seed(request: Any) -> Any:
        await json_body(request)
        if first["name"] is None:
            raise LookupError("FLUX_FIRST_WORKFLOW names no workflow.")
        return {"new": await asyncio.to_thread(user_folder.seed_workflows, workflows, folder(request))}


def add_routes(routes: Any, runs: Runs, loras: Callable[[], list[str]]) -> None:
    """routes: aiohttp's RouteTableDef. loras: gives the names of the LoRA files."""

    @routes.get(PREFIX + "/runs")
    @answers
    async def overview(_request: Any) -> Any:
        return await asyncio.to_thread(runs.overview)

    @routes.get(PREFIX + "/runs/{run}")
    @answers
    async def details(request: Any) -> Any:
        return await asyncio.to_thread(lambda: runs.details(request.match_info["run"], loras()))

    @routes.get(PREFIX + "/runs/{run}/samples/{file}")
    @answers
    async def sample(request: Any) -> Any:
        where = request.match_info
        return picture(await asyncio.to_thread(runs.sample, where["run"], where["file"]))

    @routes.get(PREFIX + "/runs/{run}/series/{prompt}")
    @answers
    async def series(request: Any) -> Any:
        where = request.match_info
        return await asyncio.to_thread(runs.series, where["run"], where["prompt"])

    @routes.post(PREFIX + "/runs/{run}/{wish}")
    @answers
    async def ask(request: Any) -> Any:
        await json_body(request)
        where = request.match_info
        await asyncio.to_thread(runs.ask, where["run"], where["wish"])
        return {"asked": where["wish"]}

    @routes.get(PREFIX + "/loras")
    @answers
    async def all_loras(_request: Any) -> Any:
        return {"loras": by_run(loras())}

    @routes.get(PREFIX + "/lora")
    @answers
    async def one_lora(request: Any) -> Any:
        return await asyncio.to_thread(_about_lora, runs, request.query.get("name", ""))

    @routes.post(PREFIX + "/triggers")
    @answers
    async def triggers(request: Any) -> Any:
        body = await json_body(request)
        lora, words = body.get("lora"), body.get("triggers")
        if not isinstance(lora, str) or not isinstance(words, list) or not all(isinstance(w, str) for w in words):
            raise ValueError('The body must be {"lora": a name, "triggers": [words]}.')
        lora_path(lora)  # only of a listed file
        await asyncio.to_thread(keep_triggers, runs.folder / FILE, lora, words)
        return await asyncio.to_thread(_about_lora, runs, lora)

    @routes.post(PREFIX + "/triggers/file")
    @answers
    async def triggers_into_file(request: Any) -> Any:
        lora = (await json_body(request)).get("lora")
        if not isinstance(lora, str):
            raise ValueError('The body must be {"lora": a name}.')
        await asyncio.to_thread(_write_triggers, runs, lora)
        return await asyncio.to_thread(_about_lora, runs, lora)

    @routes.get(PREFIX + "/concepts")
    @answers
    async def concepts(request: Any) -> Any:
        names = request.query.getall("lora", [])
        return {"concepts": [page_prompt.concept_as_json(concept) for concept in await _concepts_of(names)]}

    @routes.post(PREFIX + "/prompt")  # it only reads, but a prompt is too long for a URL
    @answers
    async def prompt(request: Any) -> Any:
        body = await json_body(request)
        names, text = body.get("loras", []), body.get("text", "")
        if not isinstance(text, str) or not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            raise ValueError('The body must be {"loras": [names], "text": a prompt}.')
        built = await asyncio.to_thread(build_prompt, text, await _concepts_of(names))
        found = [page_prompt.as_json(each) for each in built.found]
        return {"found": found, "unknown": built.unknown, "warnings": built.warnings}

    @routes.post(PREFIX + "/concept_prompt")
    @answers
    async def concept_prompt(request: Any) -> Any:
        body = await json_body(request, MAX_GRAPH)
        graph, nodes = body.get("prompt"), body.get("nodes")
        if not isinstance(graph, dict) or not isinstance(nodes, list) or not nodes[:MAX_NODES]:
            raise ValueError('The body must be {"prompt": a graph in API format, "nodes": [ids]}.')
        ids = [str(node) for node in nodes[:MAX_NODES]]
        return await asyncio.to_thread(lambda: page_prompt.answer(graph, ids, comfyui_names(), comfyui_classes()))


def _about_lora(runs: Runs, name: str) -> dict[str, Any]:
    """A listed LoRA's concepts, whether a user wrote them, and images of its run. Raises LookupError for others.

    in_file: whether the file itself names the same triggers.
    """
    concepts, own = nodes_prompt.concepts_of([name]), nodes_prompt.concepts_in(lora_path(name))
    return {
        "concepts": [page_prompt.concept_as_json(concept) for concept in concepts],
        "edited": edited_concepts(runs.folder / FILE, name) is not None,
        "in_file": [concept.trigger for concept in concepts] == [concept.trigger for concept in own],
        "examples": runs.examples(name),
    }


def _write_triggers(runs: Runs, name: str) -> None:
    """Write the words that a user keeps for a LoRA into its file.

    Raises LookupError, NotNow, ValueError and OSError.
    """
    path = lora_path(name)
    edited = edited_concepts(runs.folder / FILE, name)
    if edited is None:
        raise NotNow(f"No trigger words were written for {name}.")
    write_into_file(path, [concept.trigger for concept in edited])


async def _concepts_of(names: list[str]) -> list[Concept]:
    return await asyncio.to_thread(nodes_prompt.concepts_of, names[:MAX_LORAS])
