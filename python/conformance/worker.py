"""One process of the conformance run: lists the tests of a module, or runs some of them and writes down each one's fate.

Started by ``run.py``, with the interpreter under test. ``list`` must not have the package in it, so that a test which the
package breaks at import is still expected.
"""

import argparse
import importlib
import json
import os
import pkgutil
import sys
import time
import unittest


def modules(name):
    """Return a module of tests, or the modules of tests inside a package of them."""
    module = importlib.import_module(name)
    if not hasattr(module, "__path__"):
        return [module]
    inside = sorted(one.name for one in pkgutil.iter_modules(module.__path__) if one.name.startswith("test_"))
    return [importlib.import_module(f"{name}.{one}") for one in inside]


def cases(suite):
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from cases(test)
        else:
            yield test


def key(test):
    """Name a test: its module, class and method. A class may come from elsewhere and run under this module."""
    return f"{type(test).__module__}|{type(test).__qualname__}|{test._testMethodName}"


def listed(name):
    found = {}
    for module in modules(name):
        for test in cases(unittest.defaultTestLoader.loadTestsFromModule(module)):
            # The module that was asked: where the class was made may be another one.
            found.setdefault((module.__name__, type(test).__qualname__), []).append(test._testMethodName)
    return [{"module": module, "case": case, "tests": tests} for (module, case), tests in found.items()]


class Notes(unittest.TestResult):
    """Writes a line when a test begins and when it has ended, so that a killed process leaves what it knew."""

    def __init__(self, out):
        super().__init__()
        self.out = out
        self.fate = None

    def note(self, **line):
        os.write(self.out, (json.dumps(line) + "\n").encode())

    def startTest(self, test):
        super().startTest(test)
        self.fate = ("ok", "")
        self.begun = time.monotonic()
        self.note(begin=test._testMethodName)

    def stopTest(self, test):
        super().stopTest(test)
        seconds = round(time.monotonic() - self.begun, 3)
        self.note(end=test._testMethodName, fate=self.fate[0], why=self.fate[1], seconds=seconds)
        self.fate = None

    def worse(self, test, fate, error):
        why = self._exc_info_to_string(error, test) if error is not None else ""
        if self.fate is None:
            # A fixture of the class or the module.
            self.note(fixture=str(test), fate=fate, why=why)
        elif self.fate[0] in ("ok", "skip"):
            self.fate = (fate, why)

    def addError(self, test, error):
        self.worse(test, "error", error)

    def addFailure(self, test, error):
        self.worse(test, "fail", error)

    def addSubTest(self, test, subtest, error):
        if error is not None:
            self.worse(test, "fail", error)

    def addUnexpectedSuccess(self, test):
        self.worse(test, "fail", None)

    def addSkip(self, test, reason):
        if self.fate is not None:
            self.fate = ("skip", reason)
        elif isinstance(test, unittest.TestCase):
            # Some versions tell of a skipped test without its begin.
            self.note(end=test._testMethodName, fate="skip", why=reason, seconds=0)


def run(module_name, case, only, out):
    module = importlib.import_module(module_name)
    loader = unittest.defaultTestLoader
    suite = unittest.TestSuite(
        test
        for test in cases(loader.loadTestsFromModule(module))
        if type(test).__qualname__ == case and (not only or test._testMethodName in only)
    )
    suite.run(Notes(out))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--install", action="store_true", help="install phalanx before anything else")
    parser.add_argument("action", choices=["list", "run"])
    parser.add_argument("module")
    parser.add_argument("case", nargs="?")
    parser.add_argument("tests", nargs="*")
    args = parser.parse_args()
    out = os.dup(1)
    # What tests print is not part of the notes.
    os.dup2(2, 1)
    if args.install:
        import phalanx

        phalanx.install()
    if args.action == "list":
        os.write(out, json.dumps(listed(args.module)).encode())
    else:
        sys.argv[1:] = []
        run(args.module, args.case, args.tests, out)


if __name__ == "__main__":
    main()
