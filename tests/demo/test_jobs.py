"""Job queues: bounds, cancelling by key, and background jobs."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError

import pytest

from multimae_eo.demo.jobs import BackgroundJob, BusyError, JobQueue, SupersededError
from multimae_eo.errors import DataError


@pytest.fixture
def queue():
    made = JobQueue("test", threads=1, waiting=2)
    yield made
    made.close()


def test_a_newer_job_of_a_key_cancels_the_waiting_and_stops_the_running(queue):
    begun, go = threading.Event(), threading.Event()

    def long(cancellation):
        begun.set()
        assert go.wait(5)
        cancellation.check()
        return "old"

    first = queue.submit(long, key="a")
    assert begun.wait(5)
    second = queue.submit(lambda _: "second", key="a")
    third = queue.submit(lambda _: "third", key="a")
    go.set()
    assert third.future.result(5) == "third"
    with pytest.raises(SupersededError):
        first.future.result(5)
    with pytest.raises(CancelledError):
        second.future.result(5)


def test_jobs_of_other_keys_are_left_alone(queue):
    jobs = [queue.submit(lambda _, i=i: i, key=f"client {i}") for i in range(3)]
    assert [job.future.result(5) for job in jobs] == [0, 1, 2]


def test_a_full_queue_refuses(queue):
    go = threading.Event()
    jobs = [queue.submit(lambda _: go.wait(5)) for _ in range(3)]
    with pytest.raises(BusyError):
        queue.submit(lambda _: None)
    go.set()
    for job in jobs:
        assert job.future.result(5)
    time.sleep(0.05)
    assert queue.submit(lambda _: 1).future.result(5) == 1, "there is room again"


def test_two_threads_work_at_once():
    two = JobQueue("two", threads=2, waiting=2)
    meeting = threading.Barrier(2, timeout=5)
    jobs = [two.submit(lambda _: meeting.wait() >= 0) for _ in range(2)]
    assert all(job.future.result(5) for job in jobs)
    two.close()


def test_a_job_is_done_once_and_tells_its_progress(queue):
    calls = []

    def make(progress):
        calls.append(1)
        progress(1, 4)
        return "made"

    job = BackgroundJob(make)
    assert job.result is None
    for _ in range(3):
        job.start(queue)
    wait_for(job, "done")
    job.start(queue)
    assert (job.result, len(calls), job.status()["share"]) == ("made", 1, 1.0)


def test_a_failed_job_says_why_and_can_be_wanted_again(queue):
    answers = [DataError("nothing there"), None]

    def make(_):
        if (error := answers.pop(0)) is not None:
            raise error
        return 5

    job = BackgroundJob(make)
    job.start(queue)
    wait_for(job, "failed")
    assert job.status()["problem"] == "nothing there"
    job.start(queue)
    wait_for(job, "done")
    assert job.result == 5


def wait_for(job, state):
    for _ in range(200):
        if job.state == state:
            return
        time.sleep(0.02)
    raise AssertionError(job.status())
