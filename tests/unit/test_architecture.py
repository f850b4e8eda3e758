"""How the house stands: who imports whom, how long a file may be, what is never opened, which flags there are."""

import ast
import re
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from tests.recipe_files import ROOT
from trainer.config import TrainConfig

# in import order: a module imports only rooms that come before its own, or its own room
ROOMS = """
common lora_file routing exchange config guard images kernels flow models optim data lora memory sampling masking
captioning generation checkpoint comparison preflight engine train rates hub serving cli __main__
""".split()
FILES = sorted((ROOT / "trainer").rglob("*.py"))
LORA_FILE = ROOT / "trainer/lora_file"
COPIED = (LORA_FILE, ROOT / "trainer/routing", ROOT / "trainer/exchange")  # into the node pack
LAZY = ("numpy", "torch")  # imported by the functions of lora_file that compute
FORBIDDEN = re.compile(
    r"\b(import pickle|pickle\.|torch\.load\b|trust_remote_code|weights_only|hf_hub_download|snapshot_download"
    r"|from_pretrained\((?!.*local_files_only=True)|eval\((?!\))|exec\(|shell=True)"
)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_name(path): path for path in FILES}


def imports(path: Path) -> set[str]:
    """The modules of trainer/ that a file names, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{origin(path, node)}.{alias.name}" for alias in node.names}
    inside = {name for name in found if name.split(".")[0] == "trainer"}
    return {name if name in MODULES else name.rpartition(".")[0] for name in inside} - {"trainer"}


def origin(path: Path, node: ast.ImportFrom) -> str:
    """The module that is imported from. Only rooms that the node pack copies may import relatively."""
    if node.level == 0:
        return node.module or ""
    assert node.level == 1 and path.parent in COPIED, f"{path}: a relative import"
    room = f"trainer.{path.parent.name}"
    return f"{room}.{node.module}" if node.module else room


def room(module: str) -> str:
    return module.split(".")[1]


def test_every_module_stands_at_a_room():
    assert {room(module) for module in MODULES if module != "trainer"} == set(ROOMS)
    assert len(ROOMS) == len(set(ROOMS))


@pytest.mark.parametrize("module", [module for module in MODULES if module != "trainer"])
def test_imports_go_one_way(module):
    for imported in imports(MODULES[module]):
        assert imported in MODULES, imported
        if room(imported) != room(module):
            late = ROOMS.index(room(imported)) > ROOMS.index(room(module))
            assert not late, f"{module} imports {imported}, a later room"


@pytest.mark.parametrize(("folder", "early"), [(COPIED[0], ()), (COPIED[1], ("torch",)), (COPIED[2], ())], ids=str)
def test_the_rooms_that_the_node_pack_copies_need_nothing_but_themselves(folder: Path, early: tuple[str, ...]):
    """At import they need the standard library, themselves and `early`; in functions also what ComfyUI has."""
    for path in folder.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        inside = {id(each) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) for each in ast.walk(node)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                continue
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            allowed = {*sys.stdlib_module_names, *early, *(LAZY if id(node) in inside else ())}
            assert {name.split(".")[0] for name in names} <= allowed, f"{path}: {names}"


def test_no_import_goes_round_in_a_circle():
    """Within packages too. A package stands for its __init__ file."""
    graph = {module: imports(path) - {module} for module, path in MODULES.items()}
    while graph:
        leaves = {module for module, needed in graph.items() if not needed & graph.keys()}
        assert leaves, f"these import one another: {sorted(graph)}"
        graph = {module: needed for module, needed in graph.items() if module not in leaves}


def test_nothing_imports_the_command_line():
    for module, path in MODULES.items():
        for imported in imports(path):
            if room(imported) in ("cli", "__main__"):
                assert room(module) == "cli", f"{module} imports {imported}"


def test_the_trainer_stands_without_tests_tools_benchmarks_and_the_small_world():
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"^\s*(from|import) (tests|tools|benchmarks|mini)\b", text, re.MULTILINE), path


@pytest.mark.parametrize("folder", ["trainer", "mini", "tools", "benchmarks", "custom_nodes"])
def test_nothing_is_replaced_in_another_module_at_run_time(folder):
    """Tests may; a program passes an argument instead."""
    for path in (ROOT / folder).rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert not replaced_names(tree), f"{path}: {replaced_names(tree)}"


def replaced_names(tree: ast.AST) -> set[str]:
    """`module.name` for each assignment to a name of a module of ours that the file has imported."""
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom | ast.Import):
            ours = [alias for alias in node.names if _is_module(node, alias)]
            imported |= {alias.asname or alias.name.split(".")[0] for alias in ours}
    targets = [
        target
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
    ]
    return {
        ast.unparse(target)
        for target in targets
        if isinstance(target, ast.Attribute) and ast.unparse(target).split(".")[0] in imported
    }


def _is_module(node: ast.ImportFrom | ast.Import, alias: ast.alias) -> bool:
    name = f"{node.module}.{alias.name}" if isinstance(node, ast.ImportFrom) else alias.name
    place = ROOT.joinpath(*name.split("."))
    return place.is_dir() or place.with_suffix(".py").is_file()


def test_a_replaced_function_is_found():
    assert replaced_names(ast.parse("from trainer import train\ntrain.prepare = None")) == {"train.prepare"}
    assert not replaced_names(ast.parse("import torch\nfrom trainer.train import train\nself.train = train"))


@pytest.mark.parametrize("folder", ["trainer", "mini", "tests", "tools", "benchmarks", "custom_nodes"])
def test_no_file_is_longer_than_a_person_reads(folder):
    long = {path.name: lines for path in (ROOT / folder).rglob("*.py") if (lines := count_lines(path)) > 350}
    assert not long


def count_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_unpickled_fetched_or_evaluated(path):
    """Names in prose and messages are fine: only code is looked at."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
            node.value = ""
    assert not FORBIDDEN.search(ast.unparse(tree))


@pytest.mark.parametrize(
    "line", ["import pickle", "torch.load(x)", "f(trust_remote_code=True)", "M.from_pretrained(a)"]
)
def test_the_search_finds_what_it_looks_for(line):
    assert FORBIDDEN.search(line)
    assert not FORBIDDEN.search("model.eval()") and not FORBIDDEN.search("ast.literal_eval_node(x)")


def test_every_module_and_public_class_says_what_it_is():
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), path
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path}: {node.name}"


# Settings are a promise to users: one that comes or goes is added or struck out here too, on purpose.
SETTINGS = """
ae alpha_mask apply_t5_attn_mask base_precision blocks_to_swap bucket_no_upscale bucket_reso_steps cache_dir
caption_dropout_every_n_epochs caption_dropout_rate caption_extension caption_prefix caption_separator caption_suffix
caption_tag_dropout_rate checkpoint_blocks class_preservation_weight clip_l compile_dynamic cuda_graphs dataset_config
deterministic
diff_output_preservation dim_from_weights discrete_flow_shift dynamo_backend ema_decay enable_bucket enable_wildcard
evaluate_every_n_epochs
flip_aug full_bf16 gradient_accumulation_steps gradient_checkpointing guidance_scale huber_c huber_scale
huber_schedule keep_tokens keep_tokens_separator learning_rate log_every log_with logging_dir logit_mean logit_std
loss_type lr_decay_steps lr_scheduler lr_scheduler_min_lr_ratio lr_scheduler_num_cycles lr_scheduler_power
lr_scheduler_timescale lr_warmup_steps mask_background masked_loss max_bucket_reso max_grad_norm max_timestep
max_train_epochs max_train_steps
max_validation_steps memory metadata_author metadata_description metadata_license metadata_tags metadata_title
min_bucket_reso min_free_memory min_timestep mixed_precision mode_scale model_prediction_type model_type network_alpha
network_args
network_dim network_dropout network_module network_weights no_metadata optimizer_args optimizer_type output_dir
output_name overwrite pretrained_model_name_or_path prior_loss_weight resize_interpolation resolution resume
resume_anyway run_dir sample_at_first sample_every_n_epochs sample_every_n_steps sample_prompts sample_sampler
save_every_n_epochs save_every_n_steps save_last_n_epochs save_last_n_epochs_state save_last_n_steps
save_last_n_steps_state save_model_as save_precision save_state save_state_on_train_end secondary_separator seed
shuffle_caption sigmoid_scale stop_when t5xxl t5xxl_max_token_length text_encoder_lr timestep_sampling token_warmup_min
token_warmup_step tokenizer_dir torch_compile train_batch_size training_comment unet_lr validate_every_n_epochs
validate_every_n_steps validation_seed validation_split wandb_run_name weighting_scheme
"""


def test_the_list_of_settings_is_the_promised_one():
    assert sorted(field.name for field in fields(TrainConfig)) == SETTINGS.split()
