"""Which LoRA files act on a node, by the graph: loaders of many packs, switches, links, and what cannot be known."""

from typing import Any

import pytest

from custom_nodes.flux_dreambooth.loaded_loras import Loaded, NodeClasses, constant, loras_before, loras_of_users
from custom_nodes.flux_dreambooth.lora_files import Names
from custom_nodes.flux_dreambooth.nodes_prompt import LoraChoice
from custom_nodes.flux_dreambooth.page_prompt import answer

A, B, C = "a.safetensors", "b.safetensors", "sub/c.safetensors"
NAMES = Names([A, B, C])
OUTPUTS = {
    "CheckpointLoaderSimple": ("MODEL", "CLIP", "VAE"),
    "LoraLoader": ("MODEL", "CLIP"),
    "LoraLoaderModelOnly": ("MODEL",),
    "LoadFluxDreamBoothLoRA": ("MODEL", "CLIP", "STRING"),
    "ConceptPrompt": ("CONDITIONING", "STRING"),
    "PrimitiveString": ("STRING",),
    "KSampler": ("LATENT",),
    "FluxSampleRouted": ("LATENT",),
    "VAEDecode": ("IMAGE",),
    "ModelMergeSimple": ("MODEL",),
    "ComfySwitchNode": ("COMFY_MATCHTYPE_V3",),
    "CreateHookLora": ("HOOKS",),
    "SetClipHooks": ("CLIP",),
    "LoraModelLoader": ("MODEL",),
    "TrainLoraNode": ("LORA_MODEL",),
}
CLASSES = NodeClasses(lambda kind: OUTPUTS.get(kind, ()), OUTPUTS.__contains__)
BASE = {"1": ("CheckpointLoaderSimple", {"ckpt_name": A})}
MODELS = {"model": ["1", 0], "clip": ["1", 1]}


def graph(**nodes: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    """A prompt: a checkpoint loader as node 1, and the given nodes by their ids (without the n before them)."""
    given = BASE | {name.removeprefix("n"): node for name, node in nodes.items()}
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in given.items()}


def behind(kind: str, inputs: dict[str, Any], **more: tuple[str, dict[str, Any]]) -> Loaded:
    """What is found for a Concept Prompt whose CLIP is the second output of a node with these inputs."""
    prompt = graph(n2=(kind, MODELS | inputs), n3=("ConceptPrompt", {"clip": ["2", 1], "text": B}), **more)
    return loras_before(prompt, "3", NAMES, CLASSES)


@pytest.mark.parametrize(
    ("kind", "inputs", "names"),
    [
        ("LoraLoader", {"lora_name": A, "strength_model": 1.0, "strength_clip": 0.0}, [A]),
        ("LoraLoader", {"lora_name": A, "strength_model": 0, "strength_clip": 0.0}, []),
        ("LoraLoader", {"lora_name": r"sub\c.safetensors", "strength_model": 1.0}, [C]),
        ("LoraLoader|pysssss", {"lora_name": {"content": A, "image": None}, "strength_model": 1.0}, [A]),
        ("LoraLoader|pysssss", {"lora_name": B, "strength_model": 1.0, "prompt": ""}, [B]),
        (
            "Power Lora Loader (rgthree)",
            {
                "PowerLoraLoaderHeaderWidget": {"type": "PowerLoraLoaderHeaderWidget"},
                "lora_1": {"on": True, "lora": B, "strength": 1, "strengthTwo": None},
                "lora_2": {"on": False, "lora": A, "strength": 1},
                "lora_3": {"on": True, "lora": "c", "strength": 0.5},
                "lora_4": {"on": True, "lora": A, "strength": 0},
                "lora_5": {"on": True, "lora": "None", "strength": 1},
                "➕ Add Lora": "",
            },
            [B, C],
        ),
        (
            "Lora Loader Stack (rgthree)",
            {"lora_01": B, "strength_01": 1, "lora_02": "None", "strength_02": 1, "lora_03": A, "strength_03": 0},
            [B],
        ),
        (
            "LoRA Stacker",
            {"input_mode": "simple", "lora_count": 2}
            | {f"lora_name_{n}": name for n, name in enumerate((B, A, C), 1)}
            | {"lora_wt_1": 1.0, "model_str_1": 0.0, "clip_str_1": 0.0, "lora_wt_2": 0.0, "model_str_2": 1.0},
            [B],
        ),
        (
            "CR LoRA Stack",
            {"switch_1": "Off", "lora_name_1": A, "model_weight_1": 1.0, "switch_2": "On", "lora_name_2": B}
            | {"model_weight_2": 1.0, "clip_weight_2": 1.0},
            [B],
        ),
        ("easy loraStack", {"toggle": False, "num_loras": 2, "lora_1_name": A, "lora_2_name": B}, []),
        (
            "easy loraStack",
            {"toggle": True, "mode": "simple", "num_loras": 1, "lora_1_name": A, "lora_1_strength": 1.0}
            | {"lora_2_name": B, "lora_2_strength": 1.0},
            [A],
        ),
        (
            "Lora Loader (LoraManager)",
            {
                "text": "<lora:b:0.8>",
                "loras": {"__value__": [{"name": "b", "active": True}, {"name": "a", "active": False}]},
            },
            [B],
        ),
        ("Power Prompt (rgthree)", {"prompt": "a toy <lora:sub/c:0.7> <lora:a:0> <lora:nobody:1>"}, [C]),
        ("Anything", {"file": B, "other": "a.safetensor"}, [B]),
        ("Anything", {"ckpt_name": A, "vae_name": B}, []),
        ("Anything", {"settings": f'[{{"lora": "{B}", "on": true}}]'}, [B]),
    ],
)
def test_loaders_of_every_kind(kind: str, inputs: dict[str, Any], names: list[str]):
    assert list(behind(kind, inputs).names) == names


def test_the_first_loaded_is_first_and_each_is_named_once():
    prompt = graph(
        n2=("LoraLoader", MODELS | {"lora_name": A}),
        n3=("LoraLoader", {"model": ["2", 0], "clip": ["2", 1], "lora_name": B}),
        n4=("LoraLoaderModelOnly", {"model": ["3", 0], "lora_name": A}),
        n5=("FluxSampleAsTrained", {"model": ["4", 0], "clip": ["3", 1]}),
    )
    assert loras_before(prompt, "5", NAMES, CLASSES) == Loaded((A, B))
    assert loras_before(prompt, "2", NAMES, CLASSES) == Loaded()
    assert loras_before({}, "5", NAMES, CLASSES) == Loaded()


def test_a_graph_that_goes_round_and_a_malformed_one_end():
    assert loras_before({"1": {"inputs": {"clip": ["1", 0]}}}, "1", NAMES, CLASSES).names == ()
    for node in (None, [], {"inputs": []}, {"inputs": {"clip": ["x", -1], "model": ["1"], "lora_1": ["1", 10**9]}}):
        assert loras_before({"1": node, "2": {"inputs": {"clip": ["1", 0]}}}, "2", NAMES, CLASSES).names == ()


def test_what_was_made_with_another_lora_does_not_carry_it():
    """An image drawn with one LoRA is the input of a node that changes the model."""
    prompt = graph(
        n2=("LoraLoader", MODELS | {"lora_name": A}),
        n3=("KSampler", {"model": ["2", 0]}),
        n4=("VAEDecode", {"samples": ["3", 0]}),
        n5=("IPAdapter", MODELS | {"image": ["4", 0]}),
        n6=("ConceptPrompt", {"clip": ["5", 0], "text": ["7", 0]}),
        n7=("Captions", {"clip": ["2", 1]}),
    )
    assert loras_before(prompt, "6", NAMES, CLASSES) == Loaded(complete=False)


@pytest.mark.parametrize(("kind", "complete"), [("CheckpointLoaderSimple", True), ("Unknown (pack)", False)])
def test_only_known_nodes_show_that_there_is_no_lora(kind: str, complete: bool):
    assert behind(kind, {}) == Loaded(complete=complete)


def test_models_in_the_place_of_links_may_carry_any_lora():
    """As in nodes that another node has expanded into."""
    prompt = graph(n3=("ConceptPrompt", {"clip": object(), "lora_name": "(the loader's)", "text": ""}))
    assert loras_before(prompt, "3", NAMES, CLASSES) == Loaded(complete=False)
    assert LoraChoice.of("(the loader's)", prompt, "3", NAMES, CLASSES).nothing_known() == []
    prompt = graph(n2=("LoraLoader", {"clip": object(), "lora_name": A}), n3=("ConceptPrompt", {"clip": ["2", 1]}))
    assert loras_before(prompt, "3", NAMES, CLASSES) == Loaded((A,), complete=False)


def test_a_lora_that_is_trained_in_the_graph_is_no_file():
    prompt = graph(n2=("TrainLoraNode", {}), n3=("LoraModelLoader", {"model": ["1", 0], "lora": ["2", 0]}))
    prompt["4"] = {"class_type": "FluxSampleAsTrained", "inputs": {"model": ["3", 0]}}
    assert loras_before(prompt, "4", NAMES, CLASSES) == Loaded(complete=False)


def test_files_that_are_not_there_are_missing():
    assert behind("LoraLoader", {"lora_name": "gone.safetensors"}).missing == ("gone.safetensors",)
    power = {"lora_1": {"on": True, "lora": "gone.safetensors", "strength": 1}}
    assert behind("Power Lora Loader (rgthree)", power).missing == ("gone.safetensors",)
    assert behind("Power Lora Loader (rgthree)", {"lora_1": power["lora_1"] | {"on": False}}).missing == ()


def test_a_switch_makes_it_uncertain_unless_it_is_set():
    two = {"n4": ("LoraLoader", MODELS | {"lora_name": A}), "n5": ("LoraLoader", MODELS | {"lora_name": B})}
    inputs = {"on_true": ["4", 1], "on_false": ["5", 1]}
    for value, names in ((True, (A,)), (False, (B,))):
        prompt = graph(
            n2=("ComfySwitchNode", inputs | {"switch": value}), n3=("ConceptPrompt", {"clip": ["2", 0]}), **two
        )
        assert loras_before(prompt, "3", NAMES, CLASSES) == Loaded(names)
    inputs = {"any_01": ["4", 1], "any_02": ["5", 1]}
    prompt = graph(n2=("Any Switch (rgthree)", inputs), n3=("ConceptPrompt", {"clip": ["2", 0]}), **two)
    assert loras_before(prompt, "3", NAMES, CLASSES) == Loaded((A, B), complete=False, certain=False)
    models = {"model1": ["4", 0], "model2": ["5", 0]}
    prompt = graph(n2=("ModelMergeSimple", models), n3=("FluxSampleAsTrained", {"model": ["2", 0]}), **two)
    assert loras_before(prompt, "3", NAMES, CLASSES) == Loaded((A, B))


def test_hooks_load_a_lora_too():
    hooks = ("CreateHookLora", {"lora_name": A, "strength_model": 1.0, "strength_clip": 1.0})
    prompt = graph(n2=("SetClipHooks", {"clip": ["1", 1], "hooks": ["4", 0]}), n4=hooks)
    prompt["3"] = {"class_type": "ConceptPrompt", "inputs": {"clip": ["2", 0]}}
    assert loras_before(prompt, "3", NAMES, CLASSES) == Loaded((A,))


@pytest.mark.parametrize(
    ("source", "loaded"),
    [
        (("PrimitiveString", {"value": B}), Loaded((B,))),
        (("ReroutePrimitive|pysssss", {"value": B}), Loaded((B,))),
        (("ReroutePrimitive|pysssss", {"value": ["5", 0]}), Loaded((A,))),
        (("Lora Selector", {"lora": B, "folder": "x"}), Loaded((B,))),
        (("Lora Selector", {"first": B, "second": A}), Loaded(complete=False)),
        (("Random line", {"text": "nothing"}), Loaded(complete=False)),
    ],
)
def test_a_name_from_another_node(source: tuple[str, dict[str, Any]], loaded: Loaded):
    more = {"n4": source, "n5": ("PrimitiveString", {"value": A})}
    found = behind("LoraLoader", {"lora_name": ["4", 0], "strength_model": 1.0}, **more)
    assert (found.names, found.complete) == (loaded.names, loaded.complete) or found.names == loaded.names != ()
    assert (
        behind("LoraLoader", {"lora_name": ["4", 0], "strength_model": 0}, **more).names == ()
        or source[0] != "PrimitiveString"
    )


def test_constants():
    prompt = graph(
        n2=("PrimitiveString", {"value": "x"}), n3=("PrimitiveString", {"value": ["2", 0]}), n4=("Any", {"value": "y"})
    )
    assert [constant(prompt, value) for value in (3, ["2", 0], ["3", 0], ["4", 0], ["9", 0])] == [
        3,
        "x",
        "x",
        None,
        None,
    ]


def test_a_lora_on_the_model_alone_is_found_where_the_prompt_is_used():
    prompt = graph(
        n2=("LoraLoaderModelOnly", {"model": ["1", 0], "lora_name": A}),
        n3=("ConceptPrompt", {"clip": ["1", 1], "lora_name": "(the loader's)", "text": "{1} a TJ toy"}),
        n4=("KSampler", {"model": ["2", 0], "positive": ["3", 0]}),
        n5=("KSampler", {"model": ["6", 0], "latent_image": ["7", 0]}),
        n6=("LoraLoaderModelOnly", {"model": ["1", 0], "lora_name": B}),
    )
    assert loras_before(prompt, "3", NAMES, CLASSES) == Loaded()
    assert loras_of_users(prompt, "3", NAMES, CLASSES) == Loaded((A,))
    second = {"model": ["6", 0], "latent_image": ["4", 0], "positive": ["9", 0]}  # what the first has drawn
    prompt["5"] = {"class_type": "KSampler", "inputs": second}
    assert loras_of_users(prompt, "3", NAMES, CLASSES) == Loaded((A,))
    routed = {"model": ["1", 0], "prompt": ["3", 1], "lora_1": C, "strength_1": 1.0, "lora_2": "(none)"}
    prompt["4"] = {"class_type": "FluxSampleRouted", "inputs": routed}
    assert loras_of_users(prompt, "3", NAMES, CLASSES).names == (C,)
    choice = LoraChoice.of("(the loader's)", prompt, "3", NAMES, CLASSES)
    assert (choice.names, choice.elsewhere, choice.loaded) == ((), (C,), Loaded((C,)))


def test_the_page_is_told_only_what_is_known():
    prompt = graph(
        n2=("Unknown (pack)", MODELS), n3=("ConceptPrompt", {"clip": ["2", 1], "lora_name": "(the loader's)"})
    )
    told = answer(prompt, ["3"], NAMES, CLASSES)
    assert (told["complete"], told["loras"], told["missing"], told["found"]) == (False, (), (), [])
    prompt["3"]["inputs"]["text"] = ["2", 0]
    assert answer(prompt, ["3"], NAMES, CLASSES)["text"] is None
    prompt["3"]["inputs"]["lora_name"] = ["2", 0]
    assert answer(prompt, ["3"], NAMES, CLASSES)["complete"] is False
    prompt["3"]["inputs"]["lora_name"] = "gone.safetensors"
    assert answer(prompt, ["3"], NAMES, CLASSES)["missing"] == ("gone.safetensors",)
    with pytest.raises(LookupError):
        answer(prompt, ["8"], NAMES, CLASSES)
