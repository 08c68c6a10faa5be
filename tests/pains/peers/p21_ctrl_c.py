"""joblib: Ctrl-C, one traceback, all gone."""

import sys
import time

from _peer import case, need


def work(_):
    time.sleep(30)


def program(joblib):
    print("ready", flush=True)
    joblib.Parallel(n_jobs=4)(joblib.delayed(work)(number) for number in range(8))


if __name__ == "__main__":
    joblib = need("joblib")
    if sys.argv[1:] == ["program"]:
        program(joblib)
    else:
        case("p21_ctrl_c").check([sys.executable, __file__, "program"])
        print("good")
