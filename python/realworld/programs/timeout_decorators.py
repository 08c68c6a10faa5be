"""timeout-decorator and wrapt-timeout-decorator: functions run in a process of their own, killed when they are late."""

import time

import timeout_decorator
import wrapt_timeout_decorator


@timeout_decorator.timeout(0.5, use_signals=False)
def slow(n):
    time.sleep(n)
    return n


@wrapt_timeout_decorator.timeout(1.0, use_signals=False)
def slower(n):
    time.sleep(n)
    return n


@wrapt_timeout_decorator.timeout(20.0, use_signals=False)
def fail(n):
    raise KeyError(n)


def main():
    print(slow(0.01))
    try:
        slow(60)
    except timeout_decorator.TimeoutError as error:
        print(type(error).__name__, error)
    try:
        slower(60)
    except TimeoutError as error:
        print(type(error).__name__)
    try:
        fail(3)
    except KeyError as error:
        print(error)


if __name__ == "__main__":
    main()
