"""luigi: a small graph of tasks, run by two worker processes (Process subclasses with a result queue)."""

import os

import luigi


class Part(luigi.Task):
    number = luigi.IntParameter()

    def output(self):
        return luigi.LocalTarget(f"part{self.number}.txt")

    def run(self):
        with self.output().open("w") as file:
            file.write(str(self.number**2))


class Whole(luigi.Task):
    def requires(self):
        return [Part(number) for number in range(6)]

    def output(self):
        return luigi.LocalTarget("whole.txt")

    def run(self):
        total = 0
        for part in self.input():
            with part.open() as file:
                total += int(file.read())
        with self.output().open("w") as file:
            file.write(str(total))


def main():
    done = luigi.build([Whole()], workers=2, local_scheduler=True, log_level="ERROR")
    with open("whole.txt") as file:
        print(done, file.read(), len([name for name in os.listdir() if name.startswith("part")]))


if __name__ == "__main__":
    main()
