"""``python -m phalanx app.py …``: runs an unmodified program with :func:`phalanx.install` done."""

import builtins
import os
import runpy
import sys
import types
from importlib.machinery import BuiltinImporter, SourceFileLoader

import phalanx

_HELP = """\
usage: python -m phalanx [run] [--deadlocks[=action]] [--lock-order] [-m module | -c code | file | -] [arguments ...]
       python -m phalanx dump pid [--json]

Runs a Python program as `python` itself would, with what multiprocessing, threading and queue hand out taken from
phalanx, in this process and in every child, whichever its start method.

  file          a script, or a folder or zip file with a __main__.py
  -m module     a module or package, by name
  -c code       the code itself
  -             a program on standard input
  --deadlocks[=report|raise|abort]
                look for threads and processes that wait for each other; print a report, raise DeadlockError in one of
                them, or end the program
  --deadlocks-svg file, --deadlocks-json file
                write a picture and the data there as well
  --lock-order  print where locks are taken in different orders, which can end in a deadlock, before one happens
  dump pid      what every thread of a running program's processes waits for and holds
  -h, --help    this text
  -V, --version the version of phalanx

Examples:
  phalanx run app.py --workers 8
  python -m phalanx -m pytest tests
"""


def main(argv=None):
    """Run the program that the arguments name; what ``phalanx`` on the command line calls."""
    args = list(sys.argv[1:] if argv is None else argv)
    if args[:1] == ["dump"]:
        return _dump(args[1:])
    if args[:1] == ["run"]:
        del args[0]
    options = _deadlock_options(args)
    if isinstance(options, int):
        return options
    if not args or args[0] in ("-h", "--help"):
        (sys.stdout if args else sys.stderr).write(_HELP)
        return 0 if args else 2
    if args[0] in ("-V", "--version"):
        print(f"phalanx {phalanx.__version__}")
        return 0
    if args[0] in ("-m", "-c") and len(args) < 2:
        sys.stderr.write(f"phalanx: {args[0]} needs an argument; see `phalanx --help`\n")
        return 2
    if args[0].startswith("-") and args[0] not in ("-m", "-c", "-"):
        sys.stderr.write(f"phalanx: there is no option {args[0]}; Python's own go to `python`, before -m phalanx\n")
        return 2
    phalanx.install()
    if options.pop("order", False):
        phalanx.deadlocks.watch_order()
    if options:
        phalanx.deadlocks.watch(**options)
    try:
        _run(args)
    except SystemExit:
        raise
    except BaseException:
        _hide_this_file()
        raise
    return 0


def _dump(args):
    as_json = "--json" in args
    pids = [arg for arg in args if arg != "--json"]
    if len(pids) != 1 or not pids[0].isdigit():
        sys.stderr.write("phalanx: dump needs the id of a process; see `phalanx --help`\n")
        return 2
    from phalanx import _engine

    try:
        text, data = _engine._dump(int(pids[0]))
    except OSError as error:
        sys.stderr.write(f"phalanx: {error}\n")
        return 1
    sys.stdout.write(data + "\n" if as_json else text)
    return 0


def _deadlock_options(args):
    """Take the options about deadlocks out of the arguments; return them for `deadlocks.watch`, or an exit code."""
    options = {}
    while args and args[0].startswith(("--deadlocks", "--lock-order")):
        name, given, value = args.pop(0).partition("=")
        if name == "--lock-order" and not given:
            options["order"] = True
        elif name == "--deadlocks":
            options["action"] = value if given else "report"
            if options["action"] not in ("report", "raise", "abort"):
                sys.stderr.write(f"phalanx: --deadlocks is report, raise or abort, not {value}\n")
                return 2
        elif name in ("--deadlocks-svg", "--deadlocks-json"):
            if not given and not args:
                sys.stderr.write(f"phalanx: {name} needs a file; see `phalanx --help`\n")
                return 2
            options[name.rpartition("-")[2]] = value if given else args.pop(0)
        else:
            sys.stderr.write(f"phalanx: there is no option {name}\n")
            return 2
    return options


def _run(args):
    if args[0] == "-m":
        sys.argv[:] = args[1:]
        _first_path(os.getcwd())
        _fresh_main()
        runpy._run_module_as_main(args[1])
    elif args[0] == "-c":
        sys.argv[:] = ["-c", *args[2:]]
        _first_path("")
        _execute(_fresh_main(), args[1], "<string>")
    elif args[0] == "-":
        sys.argv[:] = args
        _first_path("")
        _execute(_fresh_main(), sys.stdin.read(), "<stdin>")
    else:
        sys.argv[:] = args
        _run_file(args[0])


def _run_file(name):
    # As Python names it: absolute, otherwise as typed.
    path = os.path.join(os.getcwd(), name)
    main = _fresh_main()
    # A folder or an archive has an importer, a script has none.
    if _has_importer(path):
        _first_path(path, always=True)
        runpy._run_module_as_main("__main__", alter_argv=False)
        return
    try:
        with open(path, "rb") as file:
            source = file.read()
    except OSError as error:
        sys.stderr.write(f"phalanx: can't open file {path!r}: [Errno {error.errno}] {error.strerror}\n")
        raise SystemExit(2) from None
    _first_path(os.path.dirname(os.path.realpath(path)))
    main.__file__ = path
    main.__cached__ = None
    main.__loader__ = SourceFileLoader("__main__", path)
    _execute(main, source, path)


def _has_importer(path):
    from pkgutil import get_importer

    importer = get_importer(path)
    return importer is not None and (os.path.isdir(path) or type(importer).__name__ == "zipimporter")


def _fresh_main():
    """Make the program's own ``__main__``; this module goes on under its name."""
    sys.modules["phalanx.__main__"] = sys.modules["__main__"]
    main = types.ModuleType("__main__")
    main.__builtins__ = builtins
    main.__loader__ = BuiltinImporter
    if sys.version_info < (3, 14):
        main.__annotations__ = {}
    sys.modules["__main__"] = main
    return main


def _first_path(entry, always=False):
    # Python put there the folder of `phalanx`, or the current one; with -P it put none there.
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = entry
    elif always:
        sys.path.insert(0, entry)


def _execute(main, source, name):
    code = compile(source, name, "exec", dont_inherit=True)
    if name.startswith("<") and sys.version_info >= (3, 13):
        # Tracebacks show the lines of such code, too.
        import linecache

        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    exec(code, main.__dict__)


def _hide_this_file():
    """Show the traceback of a program's end as `python` does: without what is below the program."""
    shown = sys.excepthook

    def show(kind, value, trace):
        at, start = trace, trace
        while at is not None:
            if at.tb_frame.f_code.co_filename == __file__ and at.tb_next is not None:
                start = at.tb_next
            at = at.tb_next
        shown(kind, value.with_traceback(start), start)

    sys.excepthook = show


if __name__ == "__main__":
    sys.exit(main())
