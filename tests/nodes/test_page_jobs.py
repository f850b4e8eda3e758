"""What the page may write as dataset files, presets and jobs, without a server."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from custom_nodes.flux_dreambooth import run_files
from custom_nodes.flux_dreambooth.answers import Conflict, Invalid
from custom_nodes.flux_dreambooth.dataset_files import DatasetFiles
from custom_nodes.flux_dreambooth.exchange.files import take_lock
from custom_nodes.flux_dreambooth.exchange.job_queue import SERVER_LOCK
from custom_nodes.flux_dreambooth.image_folders import ImageFolders
from custom_nodes.flux_dreambooth.routes_jobs import Jobs
from custom_nodes.flux_dreambooth.routes_plan import RunPlans
from trainer.config import TrainConfig
from trainer.data.dataset_file import load_dataset_config
from trainer.exchange.job_queue import JobQueue
from trainer.serving.command import arguments_of, plan_arguments


@pytest.fixture
def datasets(folders: ImageFolders) -> DatasetFiles:
    return DatasetFiles(folders.root, folders)


SUBSET = {"folder": "dog", "class_tokens": 'tj"dog dog', "num_repeats": 2, "is_reg": False, "flip_aug": True}


def test_a_dataset_file_is_one_that_the_trainer_reads(datasets: DatasetFiles, monkeypatch: pytest.MonkeyPatch):
    body = {"name": "mine", "subsets": [SUBSET], "general": {"resolution": 512}, "compositions": 4}
    assert datasets.write_dataset(body) == {"file": "flux_data/mine.toml"} == datasets.write_dataset(body)
    with pytest.raises(Conflict):
        datasets.write_dataset(body | {"compositions": 5})
    monkeypatch.chdir(datasets.root.parent)
    (section,) = load_dataset_config(Path("flux_data/mine.toml"), TrainConfig()).sections
    assert section.resolution == (512, 512) and section.compositions[0].num_images == 4
    assert section.subsets[0].class_tokens == 'tj"dog dog' and section.subsets[0].num_repeats == 2
    (listed,) = datasets.datasets()
    held = {key: SUBSET[key] for key in ("folder", "class_tokens", "num_repeats", "is_reg")}
    assert listed == {"file": "flux_data/mine.toml", "subsets": [held], "resolution": 512, "error": None}


def test_the_usual_preset_is_that_of_what_comfyui_shows(datasets: DatasetFiles):
    assert datasets.usual_preset(is_demo=False) is None is datasets.usual_preset(is_demo=True)
    (datasets.root / "train.toml").write_text("network_dim = 4\n")
    assert datasets.usual_preset(is_demo=False) == "flux_data/train.toml" == datasets.usual_preset(is_demo=True)
    (datasets.root / "demo.toml").write_text("network_dim = 4\n")
    assert datasets.usual_preset(is_demo=False) == "flux_data/train.toml"
    assert datasets.usual_preset(is_demo=True) == "flux_data/demo.toml"


@pytest.mark.parametrize(
    ("text", "side"),
    [
        ("[general]\nresolution = 256\n[[datasets]]\n", 256), ("[[datasets]]\nresolution = 64\n", 64),
        ("[general]\nresolution = 256\n[[datasets]]\nresolution = 64\n", 64), ("datasets = 3\n", None),
        ("[general]\nresolution = [512, 768]\n[[datasets]]\n", None), ("[[datasets]]\nresolution = true\n", None),
    ],
)  # fmt: skip
def test_a_dataset_file_tells_its_resolution(datasets: DatasetFiles, text: str, side: int | None):
    (datasets.root / "data.toml").write_text(text)
    (listed,) = datasets.datasets()
    assert listed["resolution"] == side


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../x"}, {"name": ""}, {"name": "a.b"}, {"name": 3}, {"subsets": []}, {"subsets": [3]},
        {"subsets": [SUBSET | {"folder": "../outside"}]}, {"subsets": [SUBSET | {"folder": "link"}]},
        {"subsets": [SUBSET | {"image_dir": "/etc"}]}, {"subsets": [SUBSET | {"class_tokens": "a\nb"}]},
        {"subsets": [SUBSET] * 51}, {"general": {"cache_dir": "x"}}, {"general": {"resolution": True}},
        {"general": {"resolution": -1}}, {"general": 3}, {"compositions": "3"}, {"preservation": 1e9},
        {"subsets": [SUBSET | {"num_repeats": 10**9}]}, {"subsets": [SUBSET | {"class_tokens": "x" * 201}]},
    ],
)  # fmt: skip
def test_a_dataset_file_names_only_what_it_may(datasets: DatasetFiles, change: dict[str, Any]):
    with pytest.raises((ValueError, LookupError)):
        datasets.write_dataset({"name": "mine", "subsets": [SUBSET], **change})
    assert datasets.datasets() == [] and not (datasets.root / "mine.toml").exists()


def test_presets_are_files_of_settings(datasets: DatasetFiles):
    (datasets.root / "train.toml").write_text("# My settings.\n[network]\nnetwork_dim = 4\nwhen = 2020-01-01\n")
    (datasets.root / "broken.toml").write_text("a = ")
    assert datasets.write_preset({"name": "good", "settings": {"seed": 3}}) == {"file": "flux_data/presets/good.toml"}
    found = {each["file"]: (each["title"], each["settings"]) for each in datasets.presets()}
    assert found == {
        "flux_data/train.toml": ("My settings.", {"network_dim": 4}),
        "flux_data/presets/good.toml": ("", {"seed": 3}),
    }
    with pytest.raises(Invalid) as refused:
        datasets.write_preset({"name": "bad", "settings": {"overwrite": True, "ae": "/etc/passwd", "seed": 1}})
    assert [problem["where"] for problem in refused.value.problems] == ["overwrite", "ae"]
    with pytest.raises(Invalid):
        datasets.write_preset({"name": "bad", "settings": {"a]\nb": 1}})


def test_a_preset_is_shared_as_the_file_that_it_is(datasets: DatasetFiles):
    shared = b"# Mine\n[network]\nnetwork_dim = 4 # small\n"
    assert datasets.add_preset("mine.toml", shared) == {"file": "flux_data/presets/mine.toml"}
    assert datasets.preset_content("flux_data/presets/mine.toml") == shared
    assert datasets.presets()[0]["title"] == "Mine"
    with pytest.raises(Conflict):
        datasets.add_preset("mine.toml", shared + b"\n")
    for name, data in (
        ("../x.toml", shared), ("x.toml", b"\xff"), ("x.toml", b"a = "), ("x.toml", b"[[datasets]]\n"), ("x.toml", b""),
        ("x.toml", b"overwrite = true\n"), ("x.toml", b"a = 1\n" + b"#" * 70_000), ("", shared),
        ("x.toml", b"network_dim = nan\n"), ("x.toml", b"seed = 1979-01-01\n"), ("x.toml", b"seed = [inf]\n"),
    ):  # fmt: skip
        with pytest.raises(ValueError):
            datasets.add_preset(name, data)
    for file in ("flux_data/presets/../../x", "/etc/passwd", "flux_data/none.toml"):
        with pytest.raises(LookupError):
            datasets.preset_content(file)
    assert [path.name for path in (datasets.root / "presets").iterdir()] == ["mine.toml"]


def test_a_preset_with_numbers_that_json_lacks_leaves_the_list_readable(datasets: DatasetFiles):
    (datasets.root / "odd.toml").write_text("network_alpha = nan\nseed = 3\nbetas = [inf, 1.0]\n")
    odd = next(each for each in datasets.presets() if each["file"] == "flux_data/odd.toml")
    assert odd["settings"] == {"seed": 3}


@pytest.fixture
def jobs(datasets: DatasetFiles) -> Jobs:
    datasets.write_dataset({"name": "data", "subsets": [SUBSET]})
    (datasets.root / "train.toml").write_text("[network]\nnetwork_dim = 4\n[x]\nlog_with = 'none'\n")
    return Jobs(datasets.root.parent / "runs", datasets, datasets.folders)


TRAIN = {"kind": "train", "output_name": "tj", "dataset": "flux_data/data.toml", "preset": "flux_data/train.toml"}


def test_a_training_job_has_the_preset_s_settings_and_those_given(jobs: Jobs, monkeypatch: pytest.MonkeyPatch):
    job = jobs.submit(TRAIN | {"settings": {"network_dim": 8}})["job"]
    assert (job["id"], job["kind"], job["state"], job["output_name"]) == ("tj", "train", "waiting", "tj")
    assert jobs.details("tj")["settings"] == {
        "network_dim": 8, "log_with": "none", "output_name": "tj", "dataset_config": "flux_data/data.toml",
    }  # fmt: skip
    monkeypatch.chdir(jobs.runs.parent)
    queue = JobQueue(Path("runs/queue"))
    flags = ["train", "--config_file=runs/queue/tj.toml"]
    assert arguments_of(queue.job("tj"), queue.path("tj", ".toml")) == flags, "the trainer takes it"
    (jobs.runs / "tj").mkdir()
    assert jobs.overview()["jobs"][0]["run"] == "tj" and jobs.overview()["serving"] is None


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "shell"}, {"kind": ["train"]}, {"output_name": "../x"}, {"output_name": None},
        {"output_name": "queue"}, {"dataset": "/etc/passwd"}, {"dataset": "flux_data/../x.toml"},
        {"dataset": "flux_data/none.toml"},
        {"dataset": None}, {"preset": "flux_data/none.toml"}, {"preset": "../x"}, {"settings": []},
        {"settings": {"output_dir": "/tmp"}}, {"settings": {"run_dir": "/tmp"}}, {"settings": {"config_file": "/x"}},
        {"settings": {"optimizer_type": "os.system"}}, {"settings": {"overwrite": True}},
        {"settings": {"network_dim": {"a": 1}}}, {"settings": {"a\nb": 1}}, {"settings": {"seed": None}},
        {"kind": "mask", "folder": "../x", "class_word": "dog"}, {"kind": "mask", "folder": "dog"},
        {"kind": "caption", "folder": "dog", "class_tokens": "a\nb"},
        {"kind": "compare", "run": "../x"}, {"kind": "compare", "run": "none"}, {"kind": "compare", "run": "queue"},
        {"kind": "caption", "folder": "dog", "class_tokens": "a", "redo": "yes"},
    ],
)  # fmt: skip
def test_a_job_may_do_only_what_it_may(jobs: Jobs, change: dict[str, Any]):
    with pytest.raises((ValueError, LookupError)):
        jobs.submit(TRAIN | change)
    assert jobs.overview()["jobs"] == []


def test_a_log_is_read_in_parts_without_cutting_a_character(jobs: Jobs):
    jobs.submit(TRAIN)
    assert jobs.log("tj", 0) == {"text": "", "next": 0, "size": 0}
    (jobs.queue.folder / "tj.log").write_bytes("가".encode() * 30_000 + b"\xff")
    text, start = "", 0
    while start < 90_001:
        part = jobs.log("tj", start)
        text, start = text + part["text"], part["next"]
    assert text == "가" * 30_000 + "\ufffd"
    assert jobs.log("tj", -1)["next"] == 90_001
    for bad in ("none", "../tj", "tj.toml"):
        with pytest.raises(LookupError):
            jobs.log(bad, 0)


def test_work_on_a_concept(jobs: Jobs):
    job = jobs.submit({"kind": "mask", "folder": "dog", "class_word": "dog"})["job"]
    assert (job["id"], job["folder"], job["output_name"]) == ("mask-dog", "dog", None)
    assert jobs.act("mask-dog", "cancel")["job"]["can"] == ("resume",)
    with pytest.raises(LookupError):
        jobs.act("mask-dog", "delete")


def test_what_a_run_leaves_to_look_at(jobs: Jobs):
    run, job = jobs.runs / "tj", jobs.submit(TRAIN | {"kind": "check"})["job"]
    run.mkdir()
    assert (
        jobs.details(job["id"])["sheets"] == [] and jobs.submit({"kind": "compare", "run": "tj"})["job"]["run"] == "tj"
    )
    (run / "composites.jpg").write_bytes(b"\xff\xd8\xff...")
    (run / "generated.jpg").write_bytes(b"<svg>")
    assert jobs.details(job["id"])["sheets"] == ["composites", "generated"]
    assert run_files.sheet(jobs.runs, "tj", "composites").startswith(b"\xff\xd8")
    (jobs.runs / "link").symlink_to(run)
    (run / "l.jpg").symlink_to("/etc/passwd")
    for name, sheet in (
        ("tj", "generated"),
        ("tj", "l"),
        ("tj", "../tj/composites"),
        ("link", "composites"),
        ("..", "x"),
    ):
        with pytest.raises(LookupError):
            run_files.sheet(jobs.runs, name, sheet)


@pytest.fixture
def plans(jobs: Jobs) -> Iterator[RunPlans]:
    """A trainer waits."""
    jobs.queue.folder.mkdir(parents=True)
    lock = take_lock(jobs.queue.folder / SERVER_LOCK)
    assert lock is not None
    yield RunPlans(jobs)
    os.close(lock)


NEW = {"new_dataset": {"subsets": [SUBSET], "general": {"resolution": 512}}}


def test_a_plan_is_counted_by_the_waiting_trainer(plans: RunPlans, monkeypatch: pytest.MonkeyPatch):
    body = {"output_name": None, "preset": "flux_data/train.toml", "settings": {"seed": 1}, **NEW}
    plan = plans.ask(body)["id"]
    assert plans.ask(body) == {"id": plan, "state": "waiting"} and plans.plans.unanswered() == plan
    path, dataset = plans.plans.path(plan, ".toml"), plans.plans.path(plan, ".dataset.toml")
    assert "resolution = 512" in dataset.read_text() and "dataset_config" not in path.read_text()
    flags = [f"--config_file={path}", f"--dataset_config={dataset}", "--cache_dir=flux_data/.cache"]
    monkeypatch.chdir(plans.jobs.runs.parent)
    assert plan_arguments(path, dataset) == flags
    plans.plans.answer(plan, {"plan": {"steps": 5}, "warnings": []})
    assert plans.ask(body)["plan"] == {"steps": 5} and plans.jobs.overview()["jobs"] == []
    other = plans.ask(body | {"settings": {"seed": 2}})["id"]
    assert plans.ask(body | {"settings": {"seed": 3}, "instead_of": other})["state"] == "waiting"
    assert not plans.plans.is_asked(other)


def test_a_plan_is_renewed_when_images_files_or_earlier_jobs_change(plans: RunPlans):
    body = {"output_name": "tj", "dataset": "flux_data/data.toml"}
    root, seen = plans.jobs.files.root, [plans.ask(body)["id"]]
    (root / "dog/new.txt").write_text("a caption")
    seen.append(plans.ask(body)["id"])
    with (root / "data.toml").open("a") as file:
        file.write("# more\n")
    seen.append(plans.ask(body)["id"])
    plans.jobs.submit(TRAIN)
    plans.jobs.act("tj", "cancel")
    seen.append(plans.ask(body)["id"])
    assert len({*seen}) == 4


def test_without_a_trainer_nothing_is_asked(jobs: Jobs):
    assert RunPlans(jobs).ask({"output_name": "tj", "dataset": "flux_data/data.toml"})["state"] == "absent"
    assert not jobs.queue.folder.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"settings": {"output_dir": "/tmp"}}, {"preset": "../x"}, {"new_dataset": 3}, {"new_dataset": {}},
        {"new_dataset": {"subsets": [SUBSET | {"folder": "../outside"}]}}, {"dataset": "flux_data/../x.toml"},
        {"output_name": "../x"}, {"instead_of": "../x"}, {"instead_of": 3},
    ],
)  # fmt: skip
def test_a_plan_may_ask_only_what_a_job_may(plans: RunPlans, change: dict[str, Any]):
    with pytest.raises((ValueError, LookupError)):
        plans.ask({"output_name": "tj", "dataset": "flux_data/data.toml", **change})
    assert plans.plans.unanswered() is None
