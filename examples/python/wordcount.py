"""Counts the words of every text file below a directory: one after the other, with threads, with processes, with processes
of several threads each, and checks that all agree.

Written against the standard library alone. The same job as the Rust example of this name.
"""

import argparse
import collections
import multiprocessing
import os
import pathlib
import random
import re
import signal
import sys
import threading
import time
from multiprocessing.pool import ThreadPool

# Runs of letters, digits and underscores, but for those without a letter.
WORD = re.compile(r"[\d_]*[^\W\d_]\w*")
# Larger files are somebody's data, and would be one worker's whole day.
LARGEST_FILE = 8 << 20


def count(files):
    """Count files: bytes, lines, and how often each word occurs."""
    words, size, lines = collections.Counter(), 0, 0
    for path in files:
        with open(path, encoding="utf-8", newline="") as file:
            text = file.read()
        size += len(text.encode())
        lines += text.count("\n") + (not text.endswith("\n") and text != "")
        words.update(WORD.findall(text))
    return size, lines, words


def count_with_threads(files):
    """Count files with two threads of this process."""
    with ThreadPool(2) as pool:
        return merged(pool.imap_unordered(count, [files[::2], files[1::2]]))


def merged(parts):
    size, lines, words = 0, 0, collections.Counter()
    for part in parts:
        size += part[0]
        lines += part[1]
        words.update(part[2])
    return size, lines, words


class Chaos(threading.Thread):
    """Kills a random child of this process every so often."""

    def __init__(self, milliseconds):
        super().__init__(daemon=True)
        self.pause = milliseconds / 1000
        self.over = threading.Event()
        self.killed = 0

    def run(self):
        while not self.over.wait(self.pause):
            children = [child for child in multiprocessing.active_children() if child.daemon]
            if children:
                try:
                    os.kill(random.choice(children).pid, signal.SIGKILL)
                    self.killed += 1
                except ProcessLookupError:
                    pass


def results(iterator, patience):
    """Return what a pool's iterator returns, and lose patience where it would wait for ever."""
    while True:
        try:
            yield iterator.next(patience)
        except StopIteration:
            return


def sequential(batches, workers, patience):
    """One batch after the other, here."""
    return merged(map(count, batches))


def threads(batches, workers, patience):
    """Threads of this process."""
    with ThreadPool(workers) as pool:
        return merged(results(pool.imap_unordered(count, batches), patience))


def processes(batches, workers, patience):
    """Processes."""
    with multiprocessing.Pool(workers) as pool:
        return merged(results(pool.imap_unordered(count, batches), patience))


def crossed(batches, workers, patience):
    """Processes of two threads each."""
    with multiprocessing.Pool(-(-workers // 2)) as pool:
        return merged(results(pool.imap_unordered(count_with_threads, batches), patience))


MODES = {
    "sequential": (sequential, lambda workers: "1"),
    "threads": (threads, str),
    "processes": (processes, str),
    "processes x threads": (crossed, lambda workers: f"{-(-workers // 2)} x 2"),
}


def text_files(places):
    """Return the text files below the places with their sizes, in the order of their names."""
    for place in places:
        found = sorted(place.rglob("*")) if place.is_dir() else [place]
        for path in found:
            if not path.is_file() or path.is_symlink() or not 0 < path.stat().st_size <= LARGEST_FILE:
                continue
            data = path.read_bytes()
            try:
                data.decode()
            except UnicodeDecodeError:
                continue
            if 0 not in data:
                yield str(path), len(data)


def sources_of_this_build():
    """Return the folders into which cargo unpacked the packages of this project's lock file."""
    root = pathlib.Path(__file__).resolve().parent.parent.parent
    home = pathlib.Path(os.environ.get("CARGO_HOME") or pathlib.Path.home() / ".cargo")
    registries = sorted((home / "registry" / "src").glob("*"))
    folders = []
    for package in (root / "Cargo.lock").read_text().split("[[package]]")[1:]:
        value = dict(re.findall(r'^(\w+) = "(.*)"$', package, re.MULTILINE))
        if value.get("source", "").startswith("registry+"):
            name = f"{value['name']}-{value['version']}"
            folders += [registry / name for registry in registries if (registry / name).is_dir()][:1]
    if not folders:
        sys.exit("no source of this build's packages; run `cargo fetch`, or name a directory to count")
    return folders


def in_batches(files, size):
    """Group files into tasks of about this many bytes."""
    batches, batch, filled = [], [], 0
    for path, length in files:
        batch.append(path)
        filled += length
        if filled >= size:
            batches.append(batch)
            batch, filled = [], 0
    return batches + [batch] if batch else batches


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("places", nargs="*", type=pathlib.Path, help="directories or files [the sources of this build]")
    parser.add_argument("--modes", type=lambda text: text.split(","), default=list(MODES), help=", ".join(MODES))
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="how much to run at once")
    parser.add_argument("--batch", type=int, default=256, help="about how many KiB of text make one task")
    parser.add_argument("--limit", type=int, help="stop looking for files after so many MiB of text")
    parser.add_argument("--chaos", nargs="?", type=int, const=100, metavar="MS", help="kill a random worker so often")
    parser.add_argument("--patience", type=float, metavar="S", help="with --chaos: give up after so long without a result [20]")
    parser.add_argument("--top", type=int, default=5, help="how many of the most frequent words to show")
    args = parser.parse_args()

    places = args.places or sources_of_this_build()
    files, left = [], (args.limit or 1 << 20) << 20
    for path, length in text_files(places):
        if length <= left:
            files.append((path, length))
            left -= length
    if not files:
        sys.exit("no text file there; name another directory")
    batches = in_batches(files, args.batch << 10)
    total = sum(length for _, length in files)
    print(f"{len(files):,} text files, {total / (1 << 20):.2f} MiB, in {len(batches)} tasks\n")

    print(f"{'mode':<22} {'width':>7} {'time':>10} {'MB/s':>10} {'ratio':>8}")
    first = None
    for name in args.modes:
        mode, width = MODES[name]
        chaos = Chaos(args.chaos) if args.chaos else None
        patience = (args.patience or 20) if chaos else None
        begun = time.perf_counter()
        if chaos:
            chaos.start()
        try:
            counted = mode(batches, args.workers, patience)
        except multiprocessing.TimeoutError:
            print(f"{name:<22} {width(args.workers):>7}    no result for {patience:.0f} s: a killed worker's task is lost")
            continue
        finally:
            if chaos:
                chaos.over.set()
                chaos.join()
        took = time.perf_counter() - begun
        first = first or (name, took, counted)
        if counted != first[2]:
            sys.exit(f"{first[0]} and {name} do not agree")
        print(f"{name:<22} {width(args.workers):>7} {took:>8.2f} s {total / 1e6 / took:>10.0f} {first[1] / took:>7.2f}x")
        if chaos and chaos.killed:
            print(f"{'':<22} {chaos.killed} workers were killed meanwhile")
    if first is None:
        sys.exit("no mode came to an end")
    size, lines, words = first[2]
    print(f"\nall agree: {words.total() if hasattr(words, 'total') else sum(words.values()):,} words in {lines:,} lines, {len(words):,} of them different")
    for word, times in sorted(words.items(), key=lambda item: (-item[1], item[0]))[: args.top]:
        print(f"  {times:>12,}  {word}")


if __name__ == "__main__":
    main()
