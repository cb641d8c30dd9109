"""Workers of an executor score what one process scores, bit for bit; what is lost runs again, and what is wrong is said."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import parallel_cases as cases
import pytest
import torch
from onnx_torch_files import exported_file
from small_networks import mixed_network
from torch import Tensor, nn
from torch.utils.data import DataLoader

import qkit
from qkit import DataError, Study, WorkersError
from qkit.execution import worker
from qkit.execution.evaluator import Budget, Evaluator, OutOfBudgetError
from qkit.execution.lanes import Lane, run_lanes
from qkit.execution.loading import Batch, batches, fingerprint
from qkit.execution.observing import observe
from qkit.execution.parallel import parts, shares
from qkit.execution.parcel import dumps, loads
from qkit.execution.picking import Picker
from qkit.graph import build
from qkit.graph.door.model_files import network
from qkit.progress import listening
from qkit.quant.calibration import make_plan
from qkit.quant.plan import FLOAT
from qkit.quant.schemes import PRESETS

pytestmark = pytest.mark.usefixtures("one_thread")


def made(evaluation: Any = None, **settings: Any) -> Study:
    found = cases.data() if evaluation is None else evaluation
    study = Study(mixed_network(), cases.data(), found, **{"metric": "top1", "scheme": "int8-per-tensor", **settings})
    study.calibrate("minmax", progress=False)
    return study


# ---------------------------------------------------------------- what is sent


class TwoOutputs(nn.Module):
    """Returns a dict; joins what it computes, and holds a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)
        self.register_buffer("weights", torch.tensor([0.25, 0.5, 1.0, 2.0]))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = torch.relu(self.conv(x)).mean((2, 3))
        return {"scores": self.last(torch.stack([x, x * self.weights]).sum(0)), "mean": x}


class Branching(nn.Module):
    """torch.export does not follow it, torch.fx does, around a function that it does not look into."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(cases.halved_where_large(self.conv(x))).mean((2, 3))


FRONTS: dict[str, Callable[[Path], Any]] = {
    "export": lambda folder: mixed_network(),
    "a dict": lambda folder: TwoOutputs().eval(),
    "fx": lambda folder: Branching().eval(),
    "kept": lambda folder: mixed_network(),
    "onnx": lambda folder: exported_file(mixed_network(), (3, 16, 16), folder / "net.onnx"),
    "pt2": lambda folder: torch.export.export(mixed_network(), (torch.randn(2, 3, 16, 16),)),
}


@pytest.mark.parametrize("front", FRONTS)
def test_a_graph_of_any_front_can_be_sent(front: str, tmp_path: Path) -> None:
    x = torch.randn(2, 3, 16, 16)
    graph = build(network(FRONTS[front](tmp_path), (x,)), x, leaf_modules=["side"] if front == "kept" else [])
    assert (front in ("kept", "fx")) == any(op.kind == "float" for op in graph.operations)
    plan = make_plan(graph, observe(graph, [x], progress=False), PRESETS["int8"], method="minmax")
    lanes = [Lane("float"), Lane("int8", plan)]
    again = loads(dumps(graph))
    assert again.taps == graph.taps
    want, found = (run_lanes(g, lanes, (x,)) for g in (graph, again))
    assert loads(dumps(plan)) == plan
    for lane in lanes:
        torch.testing.assert_close(found[lane.name], want[lane.name], rtol=0.0, atol=0.0)


def test_plain_pickle_takes_a_graph_too(mixed: nn.Module) -> None:
    x = torch.randn(2, 3, 16, 16)
    graph = build(mixed, x)
    found, want = (run_lanes(g, [Lane("float")], (x,))["float"] for g in (pickle.loads(pickle.dumps(graph)), graph))
    assert torch.equal(found, want)


def test_a_view_goes_without_the_rest_of_its_storage() -> None:
    whole = torch.randn(1000, 100)
    part = whole[:10].t()
    sent = dumps([part, part])
    assert len(sent) < 10_000
    first, second = loads(sent)
    assert torch.equal(first, part)
    assert first is second
    images = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    assert loads(dumps(images)).stride() == images.stride()


def test_functions_of_a_notebook_go_with_cloudpickle() -> None:
    pytest.importorskip("cloudpickle")
    assert loads(dumps(lambda x: x + 1))(2) == 3


def test_a_fingerprint_does_not_depend_on_threads() -> None:
    batch = Batch((torch.randn(8, 3, 224, 224),), torch.arange(8))
    one = fingerprint(batch)
    torch.set_num_threads(2)  # one_thread puts it back
    assert fingerprint(batch) == one


def test_plans_are_shared_out_whole_and_evenly() -> None:
    starts = [0, 0, 1, 3, 5, 8, 8, 9]
    for which in ([0, 2, 3, 6], list(range(8)), [7], []):
        for most in range(1, 12):
            found = shares(starts, which, most)
            assert [i for part in found for i in part] == which
            assert len(found) <= min(most, len(which))
    halves = shares(list(range(100)), list(range(100)), 2)
    first, second = (sum(100 - i for i in part) for part in halves)
    assert abs(first - second) <= 100


@pytest.mark.parametrize(
    ("workers", "batches", "wanted"),
    [
        (2, 1, 2),
        (2, 2, 1),
        (2, 3, 2),
        (2, 4, 1),
        (2, 5, 2),
        (2, 7, 1),
        (8, 1, 7),
        (8, 7, 1),
        (8, 9, 4),
        (8, 782, 1),
        (8, None, 1),
    ],
)
def test_plans_are_shared_out_where_batches_leave_workers_idle(workers: int, batches: int | None, wanted: int) -> None:
    found = parts(cases.Now(workers), batches)
    assert found == wanted
    if batches:
        tasks = found * batches
        assert tasks / (workers * -(-tasks // workers)) >= 0.85


# ---------------------------------------------------------------- batches by number


def loaders(log: Path | None = None) -> dict[str, Any]:
    whole, noisy = cases.Images(log), cases.Images(log, noise=0.1)
    return {
        "list": cases.data(),
        "in order": DataLoader(whole, batch_size=4),
        "last one short": DataLoader(whole, batch_size=3),
        "shuffled": DataLoader(whole, batch_size=4, shuffle=True),
        "with a generator": DataLoader(whole, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(5)),
        "noisy": DataLoader(noisy, batch_size=4),
        "stream": cases.Stream(),
    }


@pytest.mark.parametrize("name", loaders())
@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [3, 0, 4, 4, 1], [4, 2]])
def test_batches_by_number_are_those_of_a_pass(name: str, order: list[int]) -> None:
    want = list(batches(loaders()[name]))
    pick = Picker(loads(dumps(loaders()[name])))
    state = torch.get_rng_state()
    for number in order:
        found = pick(number)
        assert found is not None
        assert torch.equal(found.inputs[0], want[number].inputs[0])
        assert torch.equal(torch.as_tensor(found.targets), torch.as_tensor(want[number].targets))
    assert pick(len(want)) is None
    assert pick.length == len(want)
    assert torch.equal(torch.get_rng_state(), state)


class FailsOnce:
    """Gives six batches; reading the fourth fails the first time."""

    def __init__(self) -> None:
        self.failed = False

    def __iter__(self) -> Iterator[Tensor]:
        for at in range(6):
            if at == 3 and not self.failed:
                self.failed = True
                raise OSError("a file that is not there yet")
            yield torch.full((2, 3), float(at))


def test_a_pass_that_failed_is_not_the_loaders_end() -> None:
    pick = Picker(FailsOnce())
    first = pick(2)
    assert first is not None
    with pytest.raises(OSError, match="not there yet"):
        pick(3)
    assert pick.length is None
    found = [pick(at) for at in (4, 3, 5)]
    assert [float(batch.inputs[0][0, 0]) for batch in found if batch is not None] == [4.0, 3.0, 5.0]
    assert pick(6) is None
    assert pick.length == 6


def test_only_the_images_that_are_asked_for_are_read(tmp_path: Path) -> None:
    pick = Picker(DataLoader(cases.Images(tmp_path), batch_size=4))
    pick(3), pick(1)
    read = [int(line) for line in (tmp_path / str(os.getpid())).read_text().split()]
    assert read == [12, 13, 14, 15, 4, 5, 6, 7]


# ---------------------------------------------------------------- an executor of one process


WORK: dict[str, Callable[..., Any]] = {
    "evaluate": lambda s, **k: s.evaluate(**k).to_dict(),
    "verdict": lambda s, **k: s.verdict(**k).to_dict(),
    "only": lambda s, **k: s.sensitivity(**k).scores.tolist(),
    "except": lambda s, **k: s.sensitivity("except", **k).scores.tolist(),
    "depth": lambda s, **k: s.depth(points=3, **k).table().to_dict(),
    "together": lambda s, **k: s.together(3, **k).to_dict(),
    "flips": lambda s, **k: s.flips(**k).table().to_dict(),
    "diagnose": lambda s, **k: s.diagnose(check_export=False, **k).to_dict(),
    "mixed": lambda s, **k: s.mixed(tolerance=0.0, **k).to_dict(),
    "ptc": lambda s, **k: s.ptc(["ranges", "bias-correction"], estimators=["minmax"], **k).treatment.scores.to_dict(),
}


@pytest.mark.parametrize("name", WORK)
def test_whatever_scores_plans_takes_an_executor(name: str) -> None:
    want = WORK[name](made(), progress=False)
    once, always = cases.Now(), cases.Now()
    study = made()
    assert WORK[name](study, executor=once, progress=False) == want
    assert once.tasks
    assert study.executor is None
    assert WORK[name](made().with_executor(always), progress=False) == want
    assert len(always.tasks) >= len(once.tasks)


def test_a_study_on_an_executor_shares_what_is_known() -> None:
    study, executor = made(), cases.Now()
    other = study.with_executor(executor)
    want = study.evaluate(progress=False).to_dict()
    assert other.evaluate(progress=False).to_dict() == want
    assert not executor.tasks
    other.sensitivity(progress=False)
    with listening(lambda *_: pytest.fail("it was run again")):
        study.sensitivity()
    assert other.with_metric("top1").executor is executor
    assert other.with_model(mixed_network(1)).executor is executor
    assert study.executor is other.with_executor(None).executor is None


def test_the_study_is_sent_once_and_tasks_are_small() -> None:
    study, executor = made(), cases.Now()
    study.sensitivity(executor=executor, progress=False)
    study.evaluate(executor=executor, progress=False)
    assert len({(token, payload) for token, payload, *_ in executor.tasks}) == 1
    assert max(len(dumps(task)) for task in executor.tasks) < 100_000


METRICS: dict[str, Any] = {
    "against float": "agreement",
    "lower is better": "cross-entropy",
    "by output": "closeness",
    "a function": cases.right,
}


@pytest.mark.parametrize("name", METRICS)
def test_samples_come_back_whole(name: str) -> None:
    want = made(metric=METRICS[name]).evaluate(progress=False)
    found = made(metric=METRICS[name]).evaluate(executor=cases.Now(), progress=False)
    for lane, samples in want.samples.items():
        for part in ("values", "margins", "stakes", "classes", "labels", "ratios"):
            np.testing.assert_array_equal(getattr(found.samples[lane], part), getattr(samples, part))
        assert found.samples[lane].outputs == samples.outputs


def test_a_score_of_the_whole_set_comes_back_whole() -> None:
    metric = qkit.mean_average_precision(cases.boxes)
    want, found = (
        made(cases.images_with_boxes(), metric=metric).evaluate(executor=executor, progress=False)
        for executor in (None, cases.Now())
    )
    assert found.to_dict() == want.to_dict()
    assert 0.0 < found.samples["float"].value < 1.0
    assert found.samples["int8"].replicates.tolist() == want.samples["int8"].replicates.tolist()


def test_errors_and_budgets_are_those_of_one_process() -> None:
    study, executor = made(), cases.Now()
    plans = {"float": FLOAT, "int8": study.plan, "int16": study.lane("int16")}
    here, there = (Evaluator(study.graph, cases.data(), "top1", executor=e) for e in (None, executor))
    for evaluator in (here, there):
        evaluator.scores(plans, errors=True, batches=3, progress=False)
    assert [there.error(plan, 3) for plan in plans.values()] == [here.error(plan, 3) for plan in plans.values()]
    budget = Budget(1)
    with pytest.raises(OutOfBudgetError):
        there.scores(plans, budget=budget, progress=False)
    assert there.known(study.plan) is None
    assert len(there.scores(plans, progress=False)["int8"]) == cases.BATCHES * cases.SIZE


@pytest.mark.parametrize("loader", ["list", "stream"])
def test_looks_come_in_the_order_of_the_batches(loader: str) -> None:
    study = made()

    def seen(executor: Executor | None) -> tuple[list[int], int]:
        looks: list[int] = []

        def enough(found: Any) -> bool:
            looks.append(len(found["int8"]))
            return len(looks) == 3

        evaluator = Evaluator(study.graph, loaders()[loader], "top1", executor=executor)
        found = evaluator.samples({"float": FLOAT, "int8": study.plan}, enough=enough, progress=False)
        return looks, len(found["int8"])

    assert seen(cases.Now()) == seen(None) == ([4, 8, 12], 12)


def test_a_loader_without_a_length_is_taken_to_its_end() -> None:
    want = made().evaluate(progress=False).to_dict()
    for limit in (None, 3, 50):
        executor = cases.Now()
        found = made(cases.Stream()).evaluate(batches=limit, executor=executor, progress=False)
        assert found.n == min(limit or 5, 5) * cases.SIZE
        assert limit == 3 or found.to_dict() == want
    with pytest.raises(DataError):
        made(cases.Stream()).with_data(evaluation=[])


def test_batches_that_are_known_with_gaps_are_not_taken_for_the_first_ones() -> None:
    study = made()
    evaluator = Evaluator(study.graph, cases.data(), "top1", executor=cases.Now())

    def stop(what: str, done: int, total: int | None) -> None:
        if done:
            raise KeyboardInterrupt

    whole = Evaluator(study.graph, cases.data(), "top1").scores({"it": study.plan}, progress=False)["it"]
    # of five batches some are done when it stops, and not the first ones
    with listening(stop), pytest.raises(KeyboardInterrupt):
        evaluator.over(cases.Now(lose=lambda number: CancelledError() if number < 2 else None)).scores({"it": study.plan})
    for count in (1, 2, 3):
        known = evaluator.known(study.plan, count)
        assert known is None or np.array_equal(known, whole[: count * cases.SIZE])
        assert np.array_equal(evaluator.scores({"it": study.plan}, batches=count, progress=False)["it"], whole[: count * 4])
    assert np.array_equal(evaluator.scores({"it": study.plan}, progress=False)["it"], whole)


@pytest.mark.parametrize("count", [1, 4, 9])
def test_an_interrupt_keeps_what_is_finished_and_the_same_call_goes_on(count: int) -> None:
    study, executor = made(), cases.Now()
    left = [True]

    def stop(what: str, done: int, total: int | None) -> None:
        if left and done >= count:
            left.clear()
            raise KeyboardInterrupt

    with listening(stop), pytest.raises(KeyboardInterrupt):
        study.sensitivity(executor=executor)
    again = cases.Now()
    found = study.sensitivity(executor=again, progress=False)
    assert found.scores.tolist() == made().sensitivity(progress=False).scores.tolist()
    # no plan on any batch was asked for twice
    asked = [(task[3], i) for task in (*executor.tasks, *again.tasks) for i in task[4]]
    assert len(again.tasks) > 0
    assert len(asked) == len(found.scores) * cases.BATCHES + cases.BATCHES


def test_progress_shows_all() -> None:
    seen: list[tuple[int, int | None]] = []
    study = made()
    study.evaluate(batches=2, progress=False)
    with listening(lambda what, done, total: seen.append((done, total))):
        study.evaluate(executor=cases.Now())
    assert {total for _, total in seen} == {15}
    assert seen[-1][0] == 15
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


# ---------------------------------------------------------------- what is lost


def test_what_is_lost_runs_again() -> None:
    want = made().sensitivity(progress=False).scores.tolist()
    for error in (BrokenExecutor("gone"), CancelledError()):
        executor = cases.Now(lose=lambda number, error=error: error if number in (0, 3, 4) else None)
        assert made().sensitivity(executor=executor, progress=False).scores.tolist() == want
        assert len(executor.tasks) == 10 + 3


def test_what_is_lost_again_and_again_is_given_up() -> None:
    study = made()
    executor = cases.Now(lose=lambda number: BrokenExecutor("gone") if number > 3 else None)
    with pytest.raises(WorkersError):
        study.evaluate(executor=executor, progress=False)
    again = cases.Now()
    assert study.evaluate(executor=again, progress=False).to_dict() == made().evaluate(progress=False).to_dict()
    assert 0 < len(again.tasks) < len(executor.tasks)


def test_threads_of_this_process_will_do_too() -> None:
    with ThreadPoolExecutor(2) as threads:
        found = made().evaluate(executor=threads, progress=False)
    assert found.to_dict() == made().evaluate(progress=False).to_dict()


@pytest.mark.slow
def test_forked_processes_will_do_where_openmp_has_threads_already() -> None:
    want = made().evaluate(progress=False).to_dict()
    torch.set_num_threads(2)  # one_thread puts it back
    made().evaluate(progress=False)
    with ProcessPoolExecutor(2, get_context("fork")) as forked:
        assert made().evaluate(executor=forked, progress=False).to_dict() == want


def test_a_pool_that_was_shut_down_says_so() -> None:
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    with pytest.raises(WorkersError):
        made().evaluate(executor=pool, progress=False)


def test_a_worker_that_cannot_read_the_file_is_sent_what_is_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Far(cases.Now):
        def submit(self, fn: Callable[..., Any], /, token: str, payload: Any, *rest: Any) -> Any:
            return super().submit(fn, token, "/nowhere" if isinstance(payload, str) else payload, *rest)

    monkeypatch.setattr(worker, "_sessions", type(worker._sessions)())
    executor = Far()
    assert made().evaluate(executor=executor, progress=False).to_dict() == made().evaluate(progress=False).to_dict()
    assert sum(isinstance(task[1], bytes) for task in executor.tasks) < len(executor.tasks)


def test_a_worker_keeps_a_few_studies() -> None:
    for _ in range(8):
        made().evaluate(executor=cases.Now(), progress=False)
    assert len(worker._sessions) <= 4


# ---------------------------------------------------------------- what is wrong


def test_what_cannot_be_sent_is_named() -> None:
    executor = cases.Now()
    with pytest.raises(DataError, match="list"):
        made(cases.Locked()).evaluate(executor=executor, progress=False)
    lock = cases.Locked().lock
    study = made(metric=qkit.Metric(lambda outputs, targets: lock and cases.right(outputs, targets), "right"))
    with pytest.raises(WorkersError, match="'right'"):
        study.evaluate(executor=executor, progress=False)
    assert not executor.tasks
    # what the error says to do
    assert made(list(cases.Locked())).evaluate(executor=executor, progress=False).n == 20


def test_other_data_on_a_worker_are_an_error() -> None:
    with pytest.raises(DataError):
        made(cases.Changed()).evaluate(executor=cases.Now(), progress=False)


def test_other_batches_on_a_worker_are_an_error() -> None:
    class Late(cases.Changed):
        def __iter__(self) -> Any:
            return iter([(x + self.moved * (i > 1), y) for i, (x, y) in enumerate(cases.data())])

    pytest.importorskip("cloudpickle")
    study = made(Late())
    study.evaluate(("float",), progress=False)
    with pytest.raises(DataError):
        study.evaluate(executor=cases.Now(), progress=False)


def test_an_error_on_a_worker_is_raised_here_with_its_traceback() -> None:
    study = made(metric=lambda outputs, targets: outputs.new_full((len(targets),), float("nan")))
    with pytest.raises(DataError) as caught:
        study.evaluate(executor=cases.Now(), progress=False)
    assert "worker.py" in caught.value.__notes__[0]
    with pytest.raises(qkit.QkitError, match="Picky") as caught:
        made(metric=cases.Fails()).evaluate(executor=cases.Now(), progress=False)
    assert "Picky" in caught.value.__notes__[0]


# ---------------------------------------------------------------- processes


@pytest.fixture(scope="module")
def pool() -> Iterator[qkit.execution.pool.Pool]:
    torch.set_num_threads(1)
    with qkit.workers(2) as found:
        yield found


def test_processes_score_bit_for_bit(pool: Executor, tmp_path: Path) -> None:
    """Scores, closeness to float as exact numbers, and only the images that a process needs, each read there."""
    loader = DataLoader(cases.Images(tmp_path), batch_size=4)
    here = made(metric="closeness").sensitivity(progress=False)
    there = made(loader, metric="closeness").sensitivity(executor=pool, progress=False)
    assert np.array_equal(here.scores, there.scores)
    assert np.array_equal(here.base, there.base)
    mine = (tmp_path / str(os.getpid())).read_text().split()
    others = [path.read_text().split() for path in tmp_path.iterdir() if path.name != str(os.getpid())]
    assert set(mine) <= {"0", "1", "2", "3"}
    assert {index for read in others for index in read} == {str(i) for i in range(20)}


def test_other_numbers_of_threads_are_told(pool: Executor, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="qkit.execution.parallel")
    made().evaluate(batches=1, executor=pool, progress=False)
    assert not caplog.records
    torch.set_num_threads(2)  # one_thread puts it back
    made().evaluate(batches=1, executor=pool, progress=False)
    assert not caplog.records[1:]
    assert [record.args for record in caplog.records] == [(1, 2)]


@pytest.mark.slow
def test_a_process_that_dies_is_replaced(pool: Executor, tmp_path: Path) -> None:
    study = made(metric=cases.Dies(tmp_path, once=True))
    found = study.evaluate(executor=pool, progress=False)
    assert (tmp_path / "died").exists()
    assert found.lanes["int8"].tolist() == made().evaluate(progress=False).lanes["int8"].tolist()


@pytest.mark.slow
def test_a_plain_pool_that_lost_a_process_says_so(tmp_path: Path) -> None:
    study = made(metric=cases.Dies(tmp_path, once=True))
    with ProcessPoolExecutor(1, get_context("spawn")) as plain, pytest.raises(WorkersError):
        study.evaluate(executor=plain, progress=False)
    # here it goes on
    assert study.evaluate(progress=False).lanes["int8"].tolist() == made().evaluate(progress=False).lanes["int8"].tolist()


@pytest.mark.slow
def test_a_task_that_always_dies_is_given_up(pool: Executor, tmp_path: Path) -> None:
    with pytest.raises(WorkersError):
        made(metric=cases.Dies(tmp_path, once=False)).evaluate(executor=pool, progress=False)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_each_process_has_a_gpu_of_its_own_and_scores_bit_for_bit(tmp_path: Path) -> None:
    here = made(metric="closeness", device="cuda").sensitivity(progress=False)
    with qkit.workers() as pool:
        there = made(metric=cases.OnDevice(tmp_path), device="cuda").sensitivity(executor=pool, progress=False)
        again = made(metric="closeness", device="cuda").sensitivity(executor=pool, progress=False)
    assert there.scores.shape == here.scores.shape
    assert {path.name for path in tmp_path.iterdir()} == {f"cuda-{i}" for i in range(torch.cuda.device_count())}
    assert np.array_equal(here.scores, again.scores)


@pytest.mark.slow
def test_processes_end_with_the_one_that_made_them(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, time, qkit\n"
        "if __name__ == '__main__':\n"
        "    pool = qkit.workers(1)\n"
        "    print(pool.submit(os.getpid).result(), flush=True)\n"
        "    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as maker:
        assert maker.stdout is not None
        worker_pid = int(maker.stdout.readline())
        os.kill(worker_pid, 0)  # it is there
        maker.kill()
    for _ in range(300):
        if not Path(f"/proc/{worker_pid}").exists():
            break
        time.sleep(0.1)
    assert not Path(f"/proc/{worker_pid}").exists()


# ---------------------------------------------------------------- Dask


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed")
    torch.set_num_threads(1)
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as found,
    ):
        yield found


def pids(client: Any) -> dict[str, int]:
    return client.run(os.getpid)


def killing(folder: Path, victim: list[int]) -> Callable[[str, int, int | None], None]:
    """A listener that kills the worker which is at it, once."""

    def kill(what: str, done: int, total: int | None) -> None:
        if not victim and (busy := list(folder.glob("slow-*"))):
            victim.append(int(busy[0].name.removeprefix("slow-")))
            os.kill(victim[0], signal.SIGKILL)

    return kill


def test_a_dask_cluster_scores_bit_for_bit(client: Any) -> None:
    here = made(metric="closeness").sensitivity(progress=False)
    there = made(metric="closeness").sensitivity(executor=client.get_executor(), progress=False)
    assert np.array_equal(here.scores, there.scores)
    found = made(metric="closeness").evaluate(executor=client, progress=False)
    assert np.array_equal(found.lanes["int8"], made(metric="closeness").evaluate(progress=False).lanes["int8"])


def collected(done: Callable[[], bool]) -> bool:
    """Whether that comes true within half a minute, while what nobody holds is collected."""
    for _ in range(300):
        gc.collect()
        if done():
            return True
        time.sleep(0.1)
    return False


def test_a_study_keeps_no_dask_client_alive_and_takes_the_next(client: Any) -> None:
    study = made()
    first = type(client)(client.cluster, set_as_default=False)
    found = study.evaluate(executor=first, progress=False)
    gone = weakref.ref(first)
    first.close()
    del first
    assert collected(lambda: gone() is None)
    study = study.with_plan(study.calibrate("mse", progress=False))
    assert study.evaluate(executor=client, progress=False).lanes["int8"].shape == found.lanes["int8"].shape


def test_a_dask_cluster_keeps_no_study_that_is_gone(client: Any) -> None:
    before = set(client.futures)
    study = made()
    study.evaluate(executor=client, progress=False)
    assert set(client.futures) - before
    del study
    assert collected(lambda: not set(client.futures) - before)


def test_a_loader_that_dask_cannot_be_sent_is_refused(client: Any) -> None:
    with pytest.raises(DataError, match="list"):
        made(cases.Locked()).evaluate(executor=client.get_executor(), progress=False)


def test_dask_runs_what_a_killed_worker_had_again(client: Any, tmp_path: Path) -> None:
    study = made(metric=cases.Slow(tmp_path, 2.0))
    victim: list[int] = []
    with listening(killing(tmp_path, victim)):
        found = study.evaluate(executor=client.get_executor())
    assert victim
    assert found.lanes["int8"].tolist() == made().evaluate(progress=False).lanes["int8"].tolist()
    client.wait_for_workers(2)
    assert victim[0] not in pids(client).values()


@pytest.mark.slow
def test_a_cluster_that_loses_its_only_worker_is_sent_the_study_again(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as alone,
    ):
        study = made(metric=cases.Slow(tmp_path, 1.0))
        victim: list[int] = []
        with listening(killing(tmp_path, victim)):
            found = study.evaluate(executor=alone)
        assert victim
        assert victim[0] not in pids(alone).values()
    assert found.lanes["int8"].tolist() == made().evaluate(progress=False).lanes["int8"].tolist()


def test_a_cluster_without_workers_is_refused() -> None:
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=0, dashboard_address=None) as cluster,
        distributed.Client(cluster) as empty,
        pytest.raises(WorkersError),
    ):
        made().evaluate(executor=empty, progress=False)


@pytest.mark.slow
def test_a_slow_dask_worker_leaves_work_to_others(client: Any, tmp_path: Path) -> None:
    study = made(cases.data(40), metric=cases.Slow(tmp_path, 0.4))
    found = study.evaluate(executor=client.get_executor(), progress=False)
    assert found.lanes["int8"].tolist() == made(cases.data(40)).evaluate(progress=False).lanes["int8"].tolist()
    scored = {path.name.removeprefix("scored-"): len(path.read_text().split()) for path in tmp_path.glob("scored-*")}
    slow = next(tmp_path.glob("slow-*")).name.removeprefix("slow-")
    assert len(scored) == 2
    assert scored[slow] < sum(scored.values()) / 2


@pytest.mark.slow
def test_a_worker_that_always_dies_is_given_up_by_dask(client: Any, tmp_path: Path) -> None:
    with pytest.raises(WorkersError):
        made(metric=cases.Dies(tmp_path, once=False)).evaluate(executor=client.get_executor(), progress=False)
    client.wait_for_workers(2)


def test_an_interrupt_stops_dask_too(client: Any, tmp_path: Path) -> None:
    study = made(cases.data(12), metric=cases.Slow(tmp_path, 0.05))

    def stop(what: str, done: int, total: int | None) -> None:
        if done >= 3:
            raise KeyboardInterrupt

    with listening(stop), pytest.raises(KeyboardInterrupt):
        study.evaluate(executor=client.get_executor())
    for _ in range(100):
        if not any(client.processing().values()):
            break
        time.sleep(0.1)
    assert not any(client.processing().values())
    assert (
        study.evaluate(progress=False).to_dict()["lanes"]
        == made(cases.data(12), metric=cases.right).evaluate(progress=False).to_dict()["lanes"]
    )
