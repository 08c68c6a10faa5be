"""``install()`` as such: harmless twice, undone, and cheap on import."""

import subprocess
import sys


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_import_starts_nothing():
    code = "import phalanx, os; print(len(os.listdir('/proc/self/task')), phalanx._engine.has_session())"
    assert run(code) == "1 False\n"


def test_install_is_told_and_undone():
    code = "import phalanx as p; p.install(); p.install(); print(p.installed()); p.uninstall(); print(p.installed())"
    assert run(code) == "True\nFalse\n"


def test_what_a_module_has_only_when_asked_is_replaced_and_undone():
    code = (
        "import concurrent.futures as f, phalanx as p\n"
        "p.install(); ours = f.ProcessPoolExecutor; p.uninstall(); stock = f.ProcessPoolExecutor\n"
        "print(ours.__module__.split('.')[0], stock.__module__.split('.')[0])"
    )
    assert run(code) == "phalanx concurrent\n"


def test_what_is_not_imported_yet_is_replaced_when_it_is():
    code = (
        "import sys, phalanx as p\n"
        "p.install(); print('multiprocessing.managers' in sys.modules, 'concurrent.futures' in sys.modules)\n"
        "import multiprocessing.managers as m, multiprocessing.pool as pool, concurrent.futures.process as f, inspect\n"
        "print(m.SyncManager.__module__, pool.Pool.__module__, f.ProcessPoolExecutor.__module__, f.Queue.__module__)\n"
        "print('class BaseManager' in inspect.getsource(m))\n"
        "p.uninstall(); print(m.SyncManager.__module__, pool.Pool.__module__)"
    )
    assert run(code) == (
        "False False\nphalanx.managers phalanx.pool phalanx.futures phalanx.queues\nTrue\n"
        "multiprocessing.managers multiprocessing.pool\n"
    )


def test_a_module_of_ours_may_be_the_first_one_imported():
    for first in ("phalanx._office", "phalanx.futures", "phalanx.connection", "phalanx.managers"):
        code = f"import phalanx as p; p.install(); import {first}; import multiprocessing.pool as m; print(m.Pool.__module__)"
        assert run(code) == "phalanx.pool\n"


def test_locks_are_replaced_when_somebody_imports_them():
    code = (
        "import sys, threading, phalanx as p\n"
        "stock = threading.Barrier\n"
        "p.install(); print('multiprocessing.synchronize' in sys.modules)\n"
        "import _multiprocessing; print(_multiprocessing.SemLock.__module__)\n"
        "import multiprocessing.synchronize as s; print(s.Lock.__module__, threading.Barrier is stock)\n"
        "p.uninstall(); print(s.Lock.__module__, s.Barrier.__base__ is stock, threading.Barrier is stock)"
    )
    assert run(code) == (
        "False\nphalanx._engine\nphalanx.synchronize False\nmultiprocessing.synchronize True True\n"
    )


def test_what_is_hardly_used_is_imported_when_it_is():
    code = (
        "import sys, phalanx as p\n"
        "def there(): return [name for name in ('tempfile', 'traceback', 'subprocess') if name in sys.modules]\n"
        "p.install(); import multiprocessing as m, multiprocessing.connection as c, multiprocessing.pool as pool\n"
        "m.Lock(); m.Queue(); print(there())\n"
        "print(c.arbitrary_address('AF_UNIX')[:1], there())\n"
        "import multiprocessing.synchronize as s, tempfile; print(len(s.SemLock._make_name()) > 8, tempfile.gettempdir()[:1])\n"
        "print(pool.traceback.format_exception_only(ValueError, ValueError(1)), there())\n"
        "import traceback; pool.traceback.mine = 1; print(traceback.mine)\n"
        "import multiprocessing.util as u; print(type(u._args_from_interpreter_flags()), there())\n"
    )
    assert run(code) == (
        "[]\n/ ['tempfile']\nTrue /\n['ValueError: 1\\n'] ['tempfile', 'traceback']\n1\n"
        "<class 'list'> ['tempfile', 'traceback', 'subprocess']\n"
    )


def test_a_module_that_was_imported_before_is_the_one_in_use():
    code = (
        "import tempfile, phalanx as p; p.install()\n"
        "import multiprocessing.connection as c, sys; print(c.tempfile is tempfile, sys.modules['tempfile'] is tempfile)"
    )
    assert run(code) == "True True\n"
