"""What a training would take: questions of the page, and the waiting trainer's answers."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.recipe_files import ROOT
from trainer.cli import serve
from trainer.exchange.plans import MAX_PLANS, Plans
from trainer.serving import planner as planner_module
from trainer.serving.planner import TRIES, Planner

PATIENCE = 60.0
SETTINGS = {"output_name": "a", "max_train_steps": 3}
ANSWERS = "from trainer.exchange.plans import Plans; from pathlib import Path; import sys; "
ANSWERS += "Plans(Path('runs/queue')).answer(sys.argv[1], {'plan': {'steps': 3}})"


@pytest.fixture
def plans(in_tmp: Path) -> Plans:
    assert in_tmp == Path.cwd()
    return Plans(Path("runs/queue"))


def test_a_question_is_asked_once_and_forgotten_in_the_end(plans: Plans):
    plan = plans.ask(SETTINGS, "x = 1\n", "mark")
    assert plan == plans.ask(SETTINGS, "x = 1\n", "mark") == plans.unanswered()
    others = {plans.id_of(SETTINGS | {"seed": 1}, "x = 1\n", "mark"), plans.id_of(SETTINGS, None, "mark")}
    assert plan not in {*others, plans.id_of(SETTINGS, "x = 1\n", "other")}
    plans.answer(plan, {"plan": {"steps": 3}})
    assert plans.unanswered() is None and plans.answer_to(plan) == {"plan": {"steps": 3}}
    plans.withdraw(plan)
    assert plans.answer_to(plan), "an answer stays"
    for number in range(MAX_PLANS + 5):
        plans.ask(SETTINGS, None, str(number))
    assert len([*plans.folder.glob("*.toml")]) == MAX_PLANS and plans.answer_to(plan) is None


@pytest.mark.parametrize("plan", ["", "..", "../x", "a" * 25, "A" * 24, "a" * 23 + "/"])
def test_no_id_leads_out(plans: Plans, plan: str):
    for ask in (plans.answer_to, plans.withdraw, lambda plan: plans.path(plan, ".toml")):
        with pytest.raises(LookupError):
            ask(plan)


def planner(code: str) -> Planner:
    held = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"
    return Planner(Path("runs/queue"), lambda plan, _: [sys.executable, "-c", held, plan])


def tick_until(planner: Planner, condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        planner.tick(gpu_in_use=False)
        time.sleep(0.01)


def test_the_newest_question_is_answered_first(plans: Plans):
    first = plans.ask(SETTINGS, None, "1")
    second = plans.ask(SETTINGS, None, "2")
    answering = planner(ANSWERS)
    tick_until(answering, lambda: plans.answer_to(second))
    assert plans.answer_to(first) is None
    tick_until(answering, lambda: plans.answer_to(first))


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("print('one'); raise SystemExit('why')", "why"),
        ("import os; os.kill(os.getpid(), 9)", "SIGKILL"),
        ("import os; os.kill(os.getpid(), 40)", "signal 40"),
    ],
)
def test_a_process_that_leaves_no_answer_is_reported(plans: Plans, code: str, said: str):
    plan = plans.ask(SETTINGS, None, "")
    tick_until(planner(code), lambda: plans.answer_to(plan))
    assert said in (plans.answer_to(plan) or {})["message"]


def test_an_answer_that_takes_too_long_is_not_awaited(plans: Plans, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(planner_module, "SLOWEST", 0.0)
    plan = plans.ask(SETTINGS, None, "")
    tick_until(planner("import time; time.sleep(300)"), lambda: plans.answer_to(plan))
    assert "seconds" in (plans.answer_to(plan) or {})["message"]


def test_a_disk_that_refuses_answers_is_not_tried_for_ever(plans: Plans, monkeypatch: pytest.MonkeyPatch):
    def refuse(_plan: str, _held: object) -> None:
        raise OSError(28, "No space left on device")

    plan, answering = plans.ask(SETTINGS, None, ""), planner("pass")
    monkeypatch.setattr(answering.plans, "answer", refuse)
    tick_until(answering, lambda: answering.starts[plan] == TRIES and answering.planning is None)
    answering.tick(gpu_in_use=False)
    assert answering.planning is None


def test_a_question_that_is_withdrawn_stops_its_process(plans: Plans):
    plan = plans.ask(SETTINGS, None, "")
    answering = planner("import time; time.sleep(300)")
    answering.tick(gpu_in_use=False)
    process = answering.planning.process if answering.planning else None
    assert process and process.poll() is None
    plans.withdraw(plan)
    answering.tick(gpu_in_use=False)
    assert process.poll() is not None and answering.planning is None and plans.answer_to(plan) is None
    assert not answering.starts, "it may be asked again as often as somebody likes"


def test_problems_name_no_temporary_file(plans: Plans, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(serve.os, "nice", lambda _: 0)
    plan = plans.ask(SETTINGS | {"ae": "/etc/passwd", "network_dimm": 3}, "[general]\n", "")
    assert serve.run([f"--answer={plan}"]) == 0
    problems = (plans.answer_to(plan) or {})["problems"]
    wheres = [each["where"] for each in problems]
    assert len(problems) == 2 and all(where.startswith("settings") for where in wheres), problems
