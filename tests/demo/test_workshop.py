"""Nobody waits for what nobody wants, and nobody waits for ever."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError

import pytest

from multimae_eo.demo.jobs import BusyError, Job, SupersededError, Workshop
from multimae_eo.errors import DataError


@pytest.fixture
def workshop():
    made = Workshop("test", threads=1, waiting=2)
    yield made
    made.close()


def test_newer_work_of_a_lane_replaces_what_waits_and_stops_what_runs(workshop):
    begun, go = threading.Event(), threading.Event()

    def long(ticket):
        begun.set()
        assert go.wait(5)
        ticket.check()
        return "old"

    first = workshop.submit(long, lane="a")
    assert begun.wait(5)
    second = workshop.submit(lambda _: "second", lane="a")
    third = workshop.submit(lambda _: "third", lane="a")
    go.set()
    assert third.future.result(5) == "third"
    with pytest.raises(SupersededError):
        first.future.result(5)
    with pytest.raises(CancelledError):
        second.future.result(5)


def test_lanes_do_not_touch_each_other(workshop):
    orders = [workshop.submit(lambda _, i=i: i, lane=f"client {i}") for i in range(3)]
    assert [o.future.result(5) for o in orders] == [0, 1, 2]


def test_a_full_queue_refuses(workshop):
    go = threading.Event()
    orders = [workshop.submit(lambda _: go.wait(5)) for _ in range(3)]
    with pytest.raises(BusyError):
        workshop.submit(lambda _: None)
    go.set()
    for order in orders:
        assert order.future.result(5)
    time.sleep(0.05)
    assert workshop.submit(lambda _: 1).future.result(5) == 1, "there is room again"


def test_two_threads_work_at_once():
    two = Workshop("two", threads=2, waiting=2)
    meeting = threading.Barrier(2, timeout=5)
    orders = [two.submit(lambda _: meeting.wait() >= 0) for _ in range(2)]
    assert all(o.future.result(5) for o in orders)
    two.close()


def test_a_job_is_done_once_and_tells_its_progress(workshop):
    calls = []

    def make(progress):
        calls.append(1)
        progress(1, 4)
        return "made"

    job = Job(make)
    assert job.result is None
    for _ in range(3):
        job.want(workshop)
    wait_for(job, "done")
    job.want(workshop)
    assert (job.result, len(calls), job.told()["share"]) == ("made", 1, 1.0)


def test_a_failed_job_says_why_and_can_be_wanted_again(workshop):
    answers = [DataError("nothing there"), None]

    def make(_):
        if (error := answers.pop(0)) is not None:
            raise error
        return 5

    job = Job(make)
    job.want(workshop)
    wait_for(job, "failed")
    assert job.told()["problem"] == "nothing there"
    job.want(workshop)
    wait_for(job, "done")
    assert job.result == 5


def wait_for(job, state):
    for _ in range(200):
        if job.state == state:
            return
        time.sleep(0.02)
    raise AssertionError(job.told())
