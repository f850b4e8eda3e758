"""When gradients are recorded, what that frees and what it keeps; what a GPU makes of it is in tests/gpu."""

import logging

import pytest
import torch

from tests.unit.test_step import make_batch, make_model
from trainer.data.batches import Batch
from trainer.engine import cuda_graphs
from trainer.engine.cuda_graphs import RUNS_BEFORE, GradientGraphs, kind_of, why_not
from trainer.engine.step import AdaptedModel, accumulate_gradients, batch_gradient, clear_gradients
from trainer.memory.bytes import MIN_GRAPH_RESERVE


class Recorder:
    """Records by running eagerly later, on a copy of the inputs, and refuses what a graph could not stand."""

    def __init__(self, fails: bool = False):
        self.fails = fails
        self.recorded: list[torch.Size] = []
        self.replayed = 0

    def __call__(self, model: AdaptedModel, batch: Batch, _pool: None):
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing\nmore lines")
        self.recorded.append(batch.latents.shape)
        where = {name: each.grad.data_ptr() for name, each in model.parameters.items() if each.grad is not None}
        assert len(where) == len(model.parameters)

        def replay(given: Batch) -> torch.Tensor:
            self.replayed += 1
            assert kind_of(given) == kind_of(batch)
            assert where == {name: each.grad.data_ptr() for name, each in model.parameters.items()}
            return batch_gradient(model, given)

        return replay


def recording(num_kinds: int, recorder: Recorder, free: int = MIN_GRAPH_RESERVE) -> GradientGraphs:
    return GradientGraphs(num_kinds, recorder, free=lambda _device: free)


def steps(model: AdaptedModel, graphs: GradientGraphs | None, groups: list[list[Batch]]) -> list[list[torch.Tensor]]:
    """Each group's gradients, as an optimizer's step would find them."""
    found = []
    for number, group in enumerate(groups):
        pictures = sum(len(batch.sigmas) for batch in group)
        accumulate_gradients(model, group, len(group), pictures, number, graphs or batch_gradient)
        found.append([parameter.grad.clone() for parameter in model.parameters.values()])
        clear_gradients(model.parameters.values(), graphs is not None and graphs.holds_gradients)
    return found


def test_each_kind_is_recorded_after_all_have_run_and_gradients_stay_the_same():
    groups = [[make_batch(size, 10 * step + size) for size in (1, 2)] for step in range(5)]
    recorder = Recorder()
    graphs = recording(2, recorder)
    found, expected = steps(make_model(), graphs, groups), steps(make_model(), None, groups)
    torch.testing.assert_close(found, expected)
    assert [shape[0] for shape in recorder.recorded] == [1, 2]
    assert recorder.replayed == 2 * (5 - RUNS_BEFORE)


def test_it_is_settled_once_all_kinds_are_recorded():
    graphs, model = recording(2, Recorder()), make_model()
    sizes = [1, 2, 1, 2, 1, 2, 1]
    settled = []
    for number, size in enumerate(sizes):
        steps(model, graphs, [[make_batch(size, number)]])
        settled.append(graphs.is_settled)
    assert settled == [False] * 5 + [True] * 2
    graphs.release()
    assert graphs.is_settled


def test_nothing_is_recorded_while_a_kind_has_not_come():
    recorder = Recorder()
    graphs = recording(2, recorder)
    steps(make_model(), graphs, [[make_batch(1, step)] for step in range(4)])
    assert not recorder.recorded and not graphs.holds_gradients


def test_what_is_recorded_begins_within_a_group():
    """The second and third batch of a group find the first one's gradient, and add to it where it is."""
    groups = [[make_batch(1, 3 * step + index) for index in range(3)] for step in range(3)]
    recorder = Recorder()
    graphs = recording(1, recorder)
    found, expected = steps(make_model(), graphs, groups), steps(make_model(), None, groups)
    torch.testing.assert_close(found, expected)
    assert recorder.replayed == 9 - RUNS_BEFORE


def test_a_kind_that_nobody_expected_gets_the_room_and_is_recorded_later():
    groups = [[make_batch(size, step)] for step, size in enumerate([1, 1, 1, 2, 1, 2, 2, 1])]
    recorder = Recorder()
    graphs = recording(1, recorder)
    found, expected = steps(make_model(), graphs, groups), steps(make_model(), None, groups)
    torch.testing.assert_close(found, expected)
    assert [shape[0] for shape in recorder.recorded] == [1, 2, 1]


def test_a_rare_kind_does_not_keep_the_others_waiting_for_ever(monkeypatch):
    """Such as a batch all of whose images preserve something."""
    monkeypatch.setattr(cuda_graphs, "PATIENCE", 6)
    recorder = Recorder()
    graphs = recording(2, recorder)
    groups = [[make_batch(size, step)] for step, size in enumerate([2, 1, 1, 1, 1, 1, 1, 1])]
    found, expected = steps(make_model(), graphs, groups), steps(make_model(), None, groups)
    torch.testing.assert_close(found, expected)
    assert [shape[0] for shape in recorder.recorded] == [1] and recorder.replayed == 2


def test_released_graphs_are_recorded_again():
    recorder = Recorder()
    graphs = recording(1, recorder)
    model = make_model()
    steps(model, graphs, [[make_batch(1, step)] for step in range(3)])
    graphs.release()
    assert not graphs.holds_gradients
    found = steps(model, graphs, [[make_batch(1, 7)]])
    torch.testing.assert_close(found, steps(make_model(), None, [[make_batch(1, 7)]]))
    assert len(recorder.recorded) == 2


def test_what_cannot_be_recorded_goes_on_and_is_told_once(caplog: pytest.LogCaptureFixture):
    groups = [[make_batch(1, step)] for step in range(5)]
    with caplog.at_level(logging.WARNING):
        found = steps(make_model(), recording(1, Recorder(fails=True)), groups)
    torch.testing.assert_close(found, steps(make_model(), None, groups))
    assert [record.getMessage() for record in caplog.records] == [
        "CUDA graph capture failed, running eagerly: operation not permitted when stream is capturing"
    ]


def test_graphs_that_leave_no_room_for_the_rest_are_let_go(caplog: pytest.LogCaptureFixture):
    groups = [[make_batch(1, step)] for step in range(5)]
    recorder = Recorder()
    graphs = recording(1, recorder, free=MIN_GRAPH_RESERVE - 1)
    with caplog.at_level(logging.WARNING):
        found = steps(make_model(), graphs, groups)
    torch.testing.assert_close(found, steps(make_model(), None, groups))
    assert (len(recorder.recorded), recorder.replayed, graphs.holds_gradients) == (1, 0, False)
    assert "it would leave only 0.7 GiB of memory" in caplog.text


def test_kinds_differ_in_shape_and_in_what_is_there():
    plain = make_batch(2)
    assert kind_of(plain) == kind_of(make_batch(2, seed=1))
    assert kind_of(plain) != kind_of(make_batch(1))
    assert kind_of(plain) != kind_of(make_batch(2, preserve=torch.ones(2)))


def test_a_cpu_records_nothing():
    model = make_model()
    assert why_not(model.config, model) == "there is no GPU"
