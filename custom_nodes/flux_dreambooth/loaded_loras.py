"""Which LoRA files act on a node's MODEL and CLIP, read from a prompt in API format.

This is the only walk through a graph: nodes use it while a prompt runs (`running_prompt`), and the page sends the
part of the open graph that it asks about. What the inputs of one node say is in `lora_inputs`.

Where the graph does not tell, the answer says so: `Loaded.complete` is False if a node on the way may load a LoRA that
its inputs do not name, and `Loaded.certain` is False if the files found may not all be used, as behind a switch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .lora_files import Names
from .lora_inputs import is_link, named_loras

Prompt = Mapping[str, Any]  # API format: node id -> {"class_type": str, "inputs": {name: value or [id, slot]}}
MODELS = ("MODEL", "CLIP")
# Values of these types are made with a model and no longer carry its LoRAs.
PLAIN_DATA = frozenset(
    "IMAGE MASK LATENT CONDITIONING VAE NOISE SIGMAS SAMPLER GUIDER AUDIO VIDEO CONTROL_NET CLIP_VISION "
    "CLIP_VISION_OUTPUT STYLE_MODEL UPSCALE_MODEL INT FLOAT BOOLEAN".split()
)
DRAWN = PLAIN_DATA - {"CONDITIONING", "GUIDER"} | {*MODELS}  # of these, a prompt is no longer an input
TEXTS = ("STRING", "COMBO")
NOT_CARRIED = PLAIN_DATA | {*TEXTS}
TRAINED = "LORA_MODEL"  # a LoRA that ComfyUI trains in the same prompt
MERGES = ("ModelMerge", "CLIPMerge", "CLIPAdd", "CLIPSubtract", "ModelAdd", "ModelSubtract")  # both inputs are used
MAX_NODES = 10_000


@dataclass(frozen=True)
class NodeClasses:
    """What the walk asks about node classes.

    outputs: the types of a class's outputs, empty if unknown; known: whether a class loads no LoRA but those that its
    inputs name, which is true of ComfyUI's own nodes and of ours.
    """

    outputs: Callable[[str], Sequence[Any]]
    known: Callable[[str], bool]


@dataclass(frozen=True)
class Loaded:
    """The LoRAs found before a node.

    names: as in ComfyUI's list, in the order of loading; missing: files that a loader names and the list lacks;
    complete: no others can act; certain: all of `names` act.
    """

    names: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    complete: bool = True
    certain: bool = True

    def __or__(self, other: "Loaded") -> "Loaded":
        """What acts in one of two places, such as the two instances of a subgraph."""
        return Loaded(
            tuple(dict.fromkeys(self.names + other.names)),
            tuple(dict.fromkeys(self.missing + other.missing)),
            self.complete and other.complete,
            self.certain and other.certain and self.names == other.names,
        )


def loras_before(prompt: Prompt, node_id: str, names: Names, classes: NodeClasses) -> Loaded:
    """The LoRAs that act on the MODEL and CLIP inputs of a node.

    prompt: in API format; what is malformed in it counts as absent. names: ComfyUI's list of LoRAs.
    """
    links = {name: value for name, value in _inputs(prompt, node_id).items() if is_link(value)}
    types = {name: _type(prompt, value, classes) for name, value in links.items()}
    start = [name for name, kind in types.items() if kind in MODELS or (kind is None and name.upper() in MODELS)]
    found = _walk(prompt, [str(links[name][0]) for name in start], names, classes)
    return replace(found, complete=found.complete and not _holds_objects(prompt, node_id))


def loras_of_users(prompt: Prompt, node_id: str, names: Names, classes: NodeClasses) -> Loaded:
    """The LoRAs that act where a node's outputs are used: on a sampler's MODEL, or named by the sampler itself."""
    users: dict[str, list[str]] = {}
    for user in prompt:
        for value in _inputs(prompt, user).values():
            if is_link(value) and _type(prompt, value, classes) not in DRAWN:
                users.setdefault(str(value[0]), []).append(user)
    queue, reached = [node_id], {node_id}
    for each in queue:  # grows while it is read
        new = dict.fromkeys(user for user in users.pop(each, ()) if user not in reached)
        reached.update(new)
        queue += new
    samplers = [user for user in queue[1:] if "MODEL" in _link_types(prompt, user, classes)]
    return _walk(prompt, samplers, names, classes)


def _walk(prompt: Prompt, origins: Sequence[str], names: Names, classes: NodeClasses) -> Loaded:
    """The LoRAs loaded by some nodes and all before them; the first loaded first."""
    found, missing = dict.fromkeys(()), dict.fromkeys(())
    complete = certain = True
    stack = [(origin, False) for origin in reversed(origins)]
    seen: set[str] = set()
    while stack:
        node_id, inputs_done = stack.pop()
        if not inputs_done:
            if node_id in seen or len(seen) >= MAX_NODES:
                continue
            seen.add(node_id)
            stack.append((node_id, True))
            stack += [(origin, False) for origin in reversed(_carriers(prompt, node_id, classes))]
            continue
        node, inputs = _node(prompt, node_id), _inputs(prompt, node_id)
        kind = str(node.get("class_type", ""))
        own = named_loras(inputs, names, lambda link: _name_behind(prompt, link, names, classes))
        found |= dict.fromkeys(own.names)
        missing |= dict.fromkeys(own.missing)
        types = _link_types(prompt, node_id, classes)
        complete &= own.complete and (classes.known(kind) or bool(own.names)) and TRAINED not in types
        complete &= not _holds_objects(prompt, node_id)
        certain &= not _may_choose(kind, inputs, types)
    return Loaded(tuple(found), tuple(missing), complete and len(seen) < MAX_NODES, certain)


def _carriers(prompt: Prompt, node_id: str, classes: NodeClasses) -> list[str]:
    """The nodes whose outputs reach a node and may carry LoRAs, or a LoRA's name."""
    inputs = _inputs(prompt, node_id)
    if _node(prompt, node_id).get("class_type") == "ComfySwitchNode" and isinstance(inputs.get("switch"), bool):
        inputs = {"chosen": inputs.get("on_true" if inputs["switch"] else "on_false")}
    links = [(name, value, _type(prompt, value, classes)) for name, value in inputs.items() if is_link(value)]
    carriers = [value for name, value, kind in links if kind not in NOT_CARRIED and (kind or not _names_file(name))]
    return [str(value[0]) for value in carriers if constant(prompt, value) is None]


def _holds_objects(prompt: Prompt, node_id: str) -> bool:
    """Whether inputs are models themselves and not links, as in nodes that another node has expanded into."""
    plain = (str, int, float, list, Mapping)
    return any(not isinstance(value, plain) and value is not None for value in _inputs(prompt, node_id).values())


def _names_file(name: str) -> bool:
    """Whether an input takes the name of a LoRA, by its own name: what gives it does not carry one."""
    return "lora" in name.lower() and "name" in name.lower()


def _may_choose(kind: str, inputs: Mapping[str, Any], types: Sequence[str | None]) -> bool:
    """Whether a node may use one of several models: it has two of one type and does not merge them."""
    if kind.startswith(MERGES) or (kind == "ComfySwitchNode" and isinstance(inputs.get("switch"), bool)):
        return False
    return any(types.count(model) > 1 for model in MODELS)


def _name_behind(prompt: Prompt, link: list[Any], names: Names, classes: NodeClasses) -> Any:
    """The file name that another node gives to a loader; "" if it gives something else, None if only a run can tell."""
    if _type(prompt, link, classes) not in (*TEXTS, None):
        return ""
    if (value := constant(prompt, link)) is not None:
        return value
    values = _inputs(prompt, str(link[0])).values()
    files = {names.find(value) for value in values if not is_link(value)} - {None}
    return files.pop() if len(files) == 1 else None


def constant(prompt: Prompt, value: Any) -> Any:
    """The value of an input, also where a primitive node gives it; None if only a run can tell."""
    for _ in range(MAX_NODES):
        if not is_link(value):
            return value
        kind = str(_node(prompt, str(value[0])).get("class_type", ""))
        inputs = _inputs(prompt, str(value[0]))
        if not kind.startswith(("Primitive", "Reroute")) or "value" not in inputs:
            return None
        value = inputs["value"]
    return None


def _node(prompt: Prompt, node_id: str) -> Mapping[str, Any]:
    node = prompt.get(node_id)
    return node if isinstance(node, Mapping) else {}


def _inputs(prompt: Prompt, node_id: str) -> Mapping[str, Any]:
    inputs = _node(prompt, node_id).get("inputs")
    return inputs if isinstance(inputs, Mapping) else {}


def _link_types(prompt: Prompt, node_id: str, classes: NodeClasses) -> list[str | None]:
    return [_type(prompt, value, classes) for value in _inputs(prompt, node_id).values() if is_link(value)]


def _type(prompt: Prompt, link: list[Any], classes: NodeClasses) -> str | None:
    """The type of the value that a link carries, None if it is unknown or any."""
    outputs = classes.outputs(str(_node(prompt, str(link[0])).get("class_type", "")))
    slot = link[1]
    kind = outputs[slot] if isinstance(slot, int) and 0 <= slot < len(outputs) else None
    return kind if isinstance(kind, str) and kind not in ("*", "COMFY_MATCHTYPE_V3") else None


def running_prompt(dynamic: Any) -> Prompt:
    """The prompt that runs, including nodes that others have expanded into (loops); dynamic: hidden input DYNPROMPT."""
    return {} if dynamic is None else {node: dynamic.get_node(node) for node in dynamic.all_node_ids()}


def comfyui_names() -> Names:
    """ComfyUI's list of LoRA files as it is now."""
    import folder_paths

    return Names(folder_paths.get_filename_list("loras"))


def comfyui_classes() -> NodeClasses:
    """The node classes of the running ComfyUI."""
    import nodes

    def outputs(kind: str) -> Sequence[Any]:
        return getattr(nodes.NODE_CLASS_MAPPINGS.get(kind), "RETURN_TYPES", ())

    def known(kind: str) -> bool:
        cls = nodes.NODE_CLASS_MAPPINGS.get(kind)
        pack = getattr(cls, "RELATIVE_PYTHON_MODULE", None) or "nodes"
        ours = getattr(cls, "__module__", "").startswith(f"{__package__}.")
        return cls is not None and (ours or not pack.startswith("custom_nodes"))

    return NodeClasses(outputs, known)
