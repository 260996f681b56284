"""Studies over many workers: what is refused, who does what, and that nothing is lost or done twice."""

import json
import random

import pytest

from benchmarks.farm import simulated
from dev.farm import run as farm
from dev.farm.schedule import Schedule
from dev.farm.study import StudyError, read

INFO = {
    "Loader": {"display_name": "Load a Model", "input": {"required": {"file": [["a.safetensors", "b.safetensors"]]}}},
    "Draw": {
        "display_name": "Draw It",
        "input": {
            "required": {
                "seed": ["INT", {"min": 0, "max": 99}],
                "text": ["STRING", {}],
                "cfg": ["FLOAT", {"min": 0.0, "max": 9.0}],
            },
            "optional": {"tiled": ["BOOLEAN", {}], "way": ["COMBO", {"options": ["fast", "slow"]}]},
        },
    },
}
PROMPT = {
    "1": {"class_type": "Loader", "inputs": {"file": "a.safetensors"}},
    "2": {
        "class_type": "Draw",
        "inputs": {"model": ["1", 0], "seed": 0, "text": "", "cfg": 1.0},
        "_meta": {"title": "A"},
    },
    "3": {
        "class_type": "Draw",
        "inputs": {"model": ["1", 0], "seed": 0, "text": "", "cfg": 1.0},
        "_meta": {"title": "B"},
    },
}
STUDY = """graph: graph.json
vary:
  model:
    set: Load a Model.file
    to: [a.safetensors, b.safetensors]
  seed: {set: [A.seed, 3.seed], to: [1, 2, 3]}
rows:
  set: {words: A.text, way: B.way}
  to:
    - {words: a beach, way: fast}
    - {words: the snow, way: slow}
"""


def study(tmp_path, text=STUDY):
    (tmp_path / "graph.json").write_text(json.dumps(PROMPT))
    path = tmp_path / "study.yaml"
    path.write_text(text)
    return read(path, None, INFO)


def test_a_study_is_every_combination_with_every_row(tmp_path):
    jobs = study(tmp_path)
    assert [job.number for job in jobs] == list(range(12))
    assert len({job.key for job in jobs}) == 12
    assert jobs[0].values == {"model": "a.safetensors", "seed": 1, "words": "a beach", "way": "fast"}
    last = jobs[-1].prompt
    assert last["1"]["inputs"]["file"] == jobs[-1].models == "b.safetensors"
    assert last["2"]["inputs"]["seed"] == last["3"]["inputs"]["seed"] == 3
    assert (last["2"]["inputs"]["text"], last["3"]["inputs"]["way"]) == ("the snow", "slow")
    assert last["3"]["inputs"]["text"] == PROMPT["3"]["inputs"]["text"]
    again = study(tmp_path, STUDY.replace("[1, 2, 3]", "[3, 1]"))
    assert {job.key for job in again} < {job.key for job in jobs}  # what is the same is known again


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("graph.json", "other.json", 1, "other.json is not there"),
        ("vary:", "varies:", 2, "'varies' means nothing here"),
        ("Load a Model.file", "Load It.file", 4, "'Load It' means no node of Draw It, Load a Model"),
        ("Load a Model.file", "Load a Model.name", 4, "Load a Model has no widget 'name'; it has file"),
        ("Load a Model.file", "Draw It.seed", 4, "'Draw It' means 2 nodes, 2, 3; write its id"),
        ("Load a Model.file", "file", 4, "'file' names no widget"),
        ("a.safetensors, b", "a.safetensors, c", 5, "file cannot be 'c.safetensors'; there are a.safetensors, b.saf"),
        ("[1, 2, 3]", "[1, 200]", 6, "seed cannot be 200; it goes from 0 to 99"),
        ("[1, 2, 3]", "[1, two]", 6, "seed cannot be 'two'; expected a number"),
        ("[1, 2, 3]", "[1.5]", 6, "seed cannot be 1.5; expected a number"),
        ("[1, 2, 3]", "[]", 6, "'seed' needs 'set'"),
        ("words: a beach, way: fast", "words: 3, way: fast", 10, "text cannot be 3; expected a text"),
        (
            "words: the snow, way: slow",
            "words: the snow, way: quick",
            11,
            "way cannot be 'quick'; there are fast, slow",
        ),
        ("words: the snow, way: slow", "words: the snow", 11, "a row needs words, way"),
    ],
)
def test_what_is_not_there_is_refused_with_its_line(tmp_path, old, new, line, said):
    assert old in STUDY
    with pytest.raises(StudyError) as refused:
        study(tmp_path, STUDY.replace(old, new, 1))
    assert str(refused.value).startswith(f"study.yaml, line {line}: ")
    assert said in str(refused.value)


@pytest.mark.parametrize("text", ["", "graph: [", "just words", "vary: {}"])
def test_what_is_no_study_is_refused(tmp_path, text):
    with pytest.raises(StudyError):
        study(tmp_path, text)


class Stand:
    """Workers that are none: each does its jobs in turn, may fail, and is lost where it is told to."""

    def __init__(self, workers, lose=(), fail=()):
        self.workers, self.lose, self.fail = workers, list(lose), set(fail)
        self.queues = [[] for _ in range(workers)]
        self.done, self.new, self.ready = [], list(range(workers)), set()

    def start(self, worker, job):
        self.queues[worker].append(job)

    def next(self):
        if self.new:
            worker = self.new.pop()
            self.ready.add(worker)
            return worker, -1, "ready", None
        worker = max(range(self.workers), key=lambda one: len(self.queues[one]))
        job = self.queues[worker].pop(0)
        if self.lose and self.lose.pop(0):
            self.queues[worker].clear()
            self.new.append(worker)
            self.ready.discard(worker)
            return worker, -1, "lost", "it was killed"
        seed = job.prompt["2"]["inputs"]["seed"]
        if seed in self.fail:
            return worker, job.number, "failed", "Draw: no memory"
        self.done.append(job.number)
        return worker, job.number, "done", ({"2": {"mean": seed / 7}}, [("vcd/a.png", b"a%d" % job.number)])


def test_a_study_that_was_cut_off_goes_on_and_comes_to_the_same_bytes(tmp_path):
    jobs = study(tmp_path)
    farm.run(jobs, tmp_path / "whole", Stand(1), lambda text: None)
    whole = (tmp_path / "whole" / "figures.json").read_bytes()
    rng, done = random.Random(1), []
    for _ in range(3):  # the driver is killed twice

        class Killed(Stand):
            def next(self):
                if len(self.done) == 4:
                    raise KeyboardInterrupt
                return super().next()

        pool = Killed(3, lose=[rng.random() < 0.3 for _ in range(9)])
        try:
            farm.run(jobs, tmp_path / "parts", pool, lambda text: None)
        except KeyboardInterrupt:
            (tmp_path / "parts" / "jobs" / ".half").mkdir()
        done += pool.done
    assert sorted(done) == list(range(12))  # nothing is done twice
    assert (tmp_path / "parts" / "figures.json").read_bytes() == whole
    assert not list((tmp_path / "parts" / "jobs").glob(".*"))
    rows = json.loads(whole)
    assert [row["values"] for row in rows] == [job.values for job in jobs]
    assert (tmp_path / "parts" / "jobs" / rows[5]["job"] / "vcd" / "a.png").read_bytes() == b"a5"
    idle = Stand(2)
    farm.run(jobs, tmp_path / "parts", idle, lambda text: None)
    assert idle.done == []


def test_what_fails_is_told_and_the_rest_completes(tmp_path):
    jobs, told = study(tmp_path), []
    pool = Stand(2, fail={2})
    failed = farm.run(jobs, tmp_path / "out", pool, told.append)
    assert len(failed) == 4
    assert failed[0] == "model a.safetensors, seed 2, words a beach, way fast: Draw: no memory"
    assert len(json.loads((tmp_path / "out" / "figures.json").read_text())) == 8
    assert told[-1] == "12 of 12"
    assert farm.run(jobs, tmp_path / "out", pool, told.append) == failed  # tried again, by the same workers
    assert len(pool.done) == 8


def test_a_job_that_loses_every_worker_is_given_up(tmp_path):
    jobs = study(tmp_path, STUDY.replace("[1, 2, 3]", "[1]").replace(", b.safetensors]", "]"))
    failed = farm.run(jobs, tmp_path / "out", Stand(1, lose=[True] * 9), lambda text: None)
    assert len(failed) == 2
    assert all("its worker was lost 3 times: it was killed" in line for line in failed)


def test_who_is_not_ready_gets_nothing_and_nothing_waits_behind_the_last_jobs(tmp_path):
    """A worker that never begins does not hold the study up, and at the end each worker has one job."""
    jobs, deepest = study(tmp_path), []

    class Late(Stand):
        def start(self, worker, job):
            assert worker != 2
            super().start(worker, job)
            deepest.append((len(jobs) - len(self.done), max(map(len, self.queues))))

    pool = Late(3)
    pool.new.remove(2)
    assert farm.run(jobs, tmp_path / "out", pool, lambda text: None) == []
    assert max(deep for _, deep in deepest) == 2
    assert {deep for left, deep in deepest if left <= 3} == {1}


def test_jobs_go_where_their_models_are():
    schedule = Schedule([(f"{model}{i}", model) for i in range(50) for model in "abcd"])
    loads, at, turn = 0, {}, 0
    while schedule.left:
        worker = turn % 4
        turn += 1
        if (job := schedule.take(worker)) is not None:
            loads += at.get(worker) != job[0]
            at[worker] = job[0]
            schedule.done(worker, job)
    assert loads == 4


@pytest.mark.parametrize("seed", range(2))
def test_a_thousand_workers_are_busy(seed):
    """100,000 jobs of drawn lengths over 30 models, loads of half a job, workers that are lost: busy time over all."""
    busy, _ = simulated(100_000, seed)
    assert busy >= 0.95
