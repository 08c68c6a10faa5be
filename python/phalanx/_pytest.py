"""The pytest plugin: with ``--phalanx-deadlocks`` a test that would hang in a deadlock fails with a report instead; with
``--phalanx-lock-order`` a test fails that takes locks in an order that can end in one."""

import os
import tempfile

import pytest


def pytest_addoption(parser):
    group = parser.getgroup("phalanx", "phalanx: locks, queues and processes that do not hang")
    group.addoption(
        "--phalanx-deadlocks",
        action="store_true",
        help="run the tests on phalanx, and let a test fail whose threads or processes wait for each other in a circle",
    )
    group.addoption(
        "--phalanx-lock-order",
        action="store_true",
        help="run the tests on phalanx, and let a test fail whose threads or processes take locks in different orders",
    )


def pytest_configure(config):
    if config.getoption("--phalanx-lock-order"):
        config.pluginmanager.register(_Orders(), "phalanx-lock-order")
    if config.getoption("--phalanx-deadlocks"):
        config.pluginmanager.register(_Watcher(), "phalanx-deadlocks")


class _Orders:
    """Makes a failure of each order of locks that was found while a test ran, in any process."""

    def __init__(self):
        from phalanx import deadlocks

        self._told = 0
        deadlocks.watch_order()

    def pytest_unconfigure(self):
        from phalanx import deadlocks

        deadlocks.unwatch_order()

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item, call):
        outcome = yield
        from phalanx import deadlocks

        new = deadlocks.inversions()[self._told :]
        self._told += len(new)
        report = outcome.get_result()
        for text in (f"lock order: {one}" for one in new):
            if report.passed:
                report.outcome = "failed"
                report.longrepr = text
            else:
                report.sections.append(("lock order", text))


class _Watcher:
    """Raises in one of the parties, so that the test goes on to its end, and makes a failure of what was found."""

    def __init__(self):
        from phalanx import deadlocks

        self._folder = tempfile.TemporaryDirectory(prefix="phalanx-deadlocks-")
        self._found = os.path.join(self._folder.name, "found.json")
        deadlocks.watch("raise", json=self._found)

    def pytest_unconfigure(self):
        from phalanx import deadlocks

        deadlocks.unwatch()
        self._folder.cleanup()

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item, call):
        outcome = yield
        try:
            with open(self._found, encoding="utf-8") as file:
                data = file.read()
            os.remove(self._found)
        except FileNotFoundError:
            return
        from phalanx import _engine

        text = f"deadlock: {_engine._draw(data, 'text')}"
        report = outcome.get_result()
        if report.passed:
            # Who failed was a thread or process that the test did not ask.
            report.outcome = "failed"
            report.longrepr = text
        else:
            report.sections.append(("deadlock", text))
