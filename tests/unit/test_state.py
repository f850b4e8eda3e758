"""A restored run goes on bit for bit; a damaged or foreign state is named."""

import json
import math
from collections import OrderedDict

import pytest
import torch

from tests.small_run import TOTAL, Run, assert_identical
from trainer.checkpoint import state as state_module
from trainer.checkpoint.state import load_state, save_state
from trainer.checkpoint.state_folder import delete_state, list_states
from trainer.checkpoint.tree import TreeWriter, decode
from trainer.common.problems import Problems

RUNS = [
    {"name": "AdamW"},
    {"name": "AdamW", "optimizer_args": ("foreach=True", "amsgrad=True")},
    {"name": "Prodigy", "learning_rate": 1.0},
    {"name": "Prodigy", "learning_rate": 1.0, "optimizer_args": ("slice_p=2", "use_bias_correction=True")},
    {"name": "Lion"},
    {"name": "Adafactor"},
    {"name": "Adafactor", "optimizer_args": ("beta1=0.9",)},
    {"name": "RAdam"},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("settings", RUNS, ids=lambda s: "-".join(str(v) for v in s.values()))
def test_a_resumed_run_is_bitwise_the_same(settings, dtype, tmp_path):
    straight = Run(dtype=dtype, **settings).train(0, TOTAL)
    Run(dtype=dtype, **settings).train(0, 5).save(tmp_path / "state-1")
    resumed = Run(dtype=dtype, **settings).restore(tmp_path / "state-1").train(5, TOTAL)
    assert_identical(straight.everything(), resumed.everything())


def test_a_state_of_a_fresh_run_and_a_second_resume(tmp_path):
    straight = Run("Prodigy", learning_rate=1.0).train(0, TOTAL)
    Run("Prodigy", learning_rate=1.0).save(tmp_path / "state-0")
    run = Run("Prodigy", learning_rate=1.0).train(0, 3).restore(tmp_path / "state-0").train(0, 4)
    run.save(tmp_path / "state-4")
    again = Run("Prodigy", learning_rate=1.0).restore(tmp_path / "state-4").train(4, TOTAL)
    assert_identical(straight.everything(), again.everything())


def test_shards_are_bounded_and_loaded_together(tmp_path, monkeypatch):
    monkeypatch.setattr(state_module, "SHARD_BYTES", 120)
    run = Run().train(0, 3)
    run.save(tmp_path / "state-1")
    files = sorted(path.name for path in (tmp_path / "state-1").iterdir())
    assert files[:3] == ["adapter-00000.safetensors", "adapter-00001.safetensors", "ema-00000.safetensors"]
    assert load_state(tmp_path / "state-1").progress == {"step": 3, "epoch": 1.5}
    assert_identical(run.everything(), Run().restore(tmp_path / "state-1").everything())


def test_only_safetensors_and_json_with_usual_modes(tmp_path):
    Run().save(tmp_path / "state-1")
    (only,) = tmp_path.iterdir()
    assert {path.suffix for path in only.iterdir()} == {".safetensors", ".json"}
    assert json.loads((only / "state.json").read_text())["format"] == "flux-dreambooth-state-1"
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in only.iterdir())


def test_saving_again_replaces(tmp_path):
    run = Run().train(0, 2)
    run.save(tmp_path / "state-1")
    run.train(2, 4).save(tmp_path / "state-1")
    assert load_state(tmp_path / "state-1").progress["step"] == 4
    assert [path.name for path in tmp_path.iterdir()] == ["state-1"]


def test_kept_settings_are_those_of_now_and_the_rest_is_restored(tmp_path):
    before = Run("Prodigy", learning_rate=1.0).train(0, 5)
    before.save(tmp_path / "state-1")
    changed = Run("Prodigy", learning_rate=0.5, optimizer_args=("weight_decay=0.1",))
    changed.restore(tmp_path / "state-1", keep_settings=True)
    group = changed.optimizer.param_groups[0]
    assert group["weight_decay"] == 0.1
    assert group["lr"] == before.optimizer.param_groups[0]["lr"] / 2
    assert torch.equal(group["d"], before.optimizer.param_groups[0]["d"])
    straight = before.train(5, TOTAL)
    same = Run("Prodigy", learning_rate=1.0).restore(tmp_path / "state-1", keep_settings=True).train(5, TOTAL)
    assert_identical(straight.everything(), same.everything())


def refusal(run: Run, folder) -> str:
    before = {name: parameter.detach().clone() for name, parameter in run.parameters.items()}
    with pytest.raises(Problems) as caught:
        run.restore(folder)
    assert all(torch.equal(before[name], parameter) for name, parameter in run.parameters.items())
    return str(caught.value)


def test_the_state_of_another_run_is_refused_before_anything_is_touched(tmp_path):
    folder = tmp_path / "state-1"
    Run().train(0, 2).save(folder)
    assert "another adapter: 1 tensors differ, first layer.2" in refusal(Run(shapes=((6, 4), (4, 6), (5,))), folder)
    assert "another adapter: 1 tensors differ, first layer.2" in refusal(Run(shapes=((6, 4), (4, 6))), folder)
    assert "not of trainer.optim.lion.Lion" in refusal(Run("Lion"), folder)
    run = Run()
    save_state(folder, tensors=run.parameters, progress={}, **{**run.rest, "ema": None})
    assert "--ema_decay" in refusal(Run(), folder)


def damage_byte(path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "harm", "words"),
    [
        ("optimizer-00000.safetensors", damage_byte, "SHA-256 differs"),
        ("adapter-00000.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-5]), "bytes instead of"),
        ("ema-00000.safetensors", lambda path: path.unlink(), "missing from the state"),
        ("state.json", lambda path: path.unlink(), "not a training state"),
        ("state.json", lambda path: path.write_text(path.read_text()[:-20]), "corrupt"),
        ("state.json", lambda path: path.write_text("{}"), "not a state in the format"),
    ],
)
def test_damage_is_named(tmp_path, name, harm, words):
    Run().train(0, 2).save(tmp_path / "state-1")
    harm(tmp_path / "state-1" / name)
    with pytest.raises(Problems, match=words) as caught:
        load_state(tmp_path / "state-1")
    assert (name if words != "not a training state" else "state-1") in str(caught.value)


def test_all_damaged_files_are_named_at_once(tmp_path):
    Run().train(0, 2).save(tmp_path / "state-1")
    for part in ("optimizer", "adapter"):
        damage_byte(tmp_path / "state-1" / f"{part}-00000.safetensors")
    with pytest.raises(Problems) as caught:
        load_state(tmp_path / "state-1")
    assert len(caught.value.problems) == 2


def test_delete_state_deletes_only_states_of_ours(tmp_path):
    Run().save(tmp_path / "state-1")
    delete_state(tmp_path / "state-1")
    assert list(tmp_path.iterdir()) == []
    Run().save(tmp_path / "state-2")
    (tmp_path / "state-2" / "notes.txt").write_text("mine")
    (tmp_path / "holiday").mkdir()
    for name in ("state-2", "holiday", "absent"):
        with pytest.raises(ValueError, match=name):
            delete_state(tmp_path / name)
    assert (tmp_path / "state-2" / "notes.txt").read_text() == "mine"


def test_a_folder_with_other_files_is_kept_where_a_state_goes(tmp_path, caplog):
    """A folder of that name that is no state, and a state to which the user has added a file."""
    folder = tmp_path / "state-step00000002"
    folder.mkdir()
    (folder / "mine.txt").write_text("notes")
    Run().train(0, 2).save(folder)
    (folder / "more.txt").write_text("more notes")
    Run().train(0, 2).save(folder)
    assert (tmp_path / "state-step00000002.kept1" / "mine.txt").read_text() == "notes"
    assert (tmp_path / "state-step00000002.kept2" / "more.txt").read_text() == "more notes"
    assert load_state(folder).progress["step"] == 2 and caplog.text.count("is now state-step00000002.kept") == 2
    Run().train(0, 2).save(folder)
    assert len(list(tmp_path.iterdir())) == 3


def test_states_are_listed_in_order_and_a_moved_one_is_found_again(tmp_path):
    for step in (20, 3, 100):
        Run().save(tmp_path / f"state-step{step:08d}")
    (tmp_path / "samples").mkdir()
    (tmp_path / "state-step00000003").rename(tmp_path / ".state-step00000003.previous")
    names = [path.name for path in list_states(tmp_path)]
    assert names == ["state-step00000003", "state-step00000020", "state-step00000100"]


def test_values_come_back_exactly():
    shared = torch.arange(3)
    value = {
        "floats": [0.1, 1e-300, math.inf, -math.inf, -0.0],
        1: (True, None, "text", 2**70, (), {}),
        None: OrderedDict(a=[[]]),
        "tensors": [shared, shared, torch.tensor(2.0, dtype=torch.float64)],
    }
    writer = TreeWriter()
    encoded = json.loads(json.dumps(writer.encode(value, "value"), allow_nan=False))
    back = decode(encoded, writer.tensors)
    assert_identical({**value, None: {"a": [[]]}}, back)
    assert str(back["floats"][-1]) == "-0.0"
    assert back["tensors"][0] is back["tensors"][1]
    assert list(writer.tensors) == ["value/tensors/0", "value/tensors/2"]


def test_what_cannot_come_back_is_refused():
    with pytest.raises(TypeError, match=r"optimizer/state/0/rule is a builtins.function"):
        TreeWriter().encode({"state": {0: {"rule": damage_byte}}}, "optimizer")
