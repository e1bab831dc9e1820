"""A client process that writes, renames and deletes files for ever and says what it did.

Run as ``workload.py URL DIRECTORY``. Before an operation it prints ``["try", operation, …]``,
after its acknowledgement ``["done"]``. What was acknowledged must be there whenever it is killed;
the one operation tried last may have happened or not.
"""

from __future__ import annotations

import json
import random
import sys

import ringhold
from ringhold.errors import Unavailable

SIZES = (0, 1, 300, 4096, 4097, 70_000, 200_000)
FILES_KEPT = 40


def content(name: str) -> bytes:
    """What the file first written as `name` holds: derived from the name, so nobody notes it."""
    generator = random.Random(name)
    return generator.randbytes(generator.choice(SIZES))


def say(*words: str) -> None:
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


def run(url: str, directory: str) -> None:
    generator = random.Random(directory)
    files: dict[str, str] = {}
    with ringhold.open(url, create=False) as cluster:
        fs = cluster.fs
        for number in range(sys.maxsize):
            choice = generator.random()
            path = f"{directory}/{number}"
            if not files or (choice < 0.6 and len(files) < FILES_KEPT):
                operation = ("write", path)
            elif choice < 0.8:
                operation = ("rename", generator.choice(sorted(files)), f"/shared{path}")
            else:
                operation = ("delete", generator.choice(sorted(files)))
            say("try", *operation)
            try:
                match operation:
                    case ("write", target):
                        fs.pipe_file(target, content(target))
                        files[target] = target
                    case ("rename", source, target):
                        fs.mv(source, target)
                        files[target] = files.pop(source)
                    case ("delete", target):
                        fs.rm_file(target)
                        del files[target]
            except Unavailable:
                # Too few nodes answered: nothing happened, says the error's contract.
                say("undone")
            else:
                say("done")


if __name__ == "__main__":
    run(*sys.argv[1:])
