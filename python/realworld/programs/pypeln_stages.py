"""pypeln: stages of processes with bounded queues between them, under a manager's namespace."""

import pypeln


def add_one(n):
    return n + 1


def large(n):
    return n > 3


def fail(n):
    raise ValueError(n)


def main():
    stage = pypeln.process.map(add_one, range(50), workers=2, maxsize=4)
    stage = pypeln.process.filter(large, stage, workers=2)
    print(sorted(stage))
    print(list(range(10) | pypeln.process.map(add_one, workers=2) | pypeln.process.ordered))
    print(sum(pypeln.thread.map(add_one, range(50), workers=3)))
    try:
        list(pypeln.process.map(fail, range(3), workers=1))
    except Exception as error:
        print(type(error).__name__)


if __name__ == "__main__":
    main()
