"""A process that has imported the packages, and runs modules of the tests in copies of itself (`processes.run_ranks`).

Importing takes much longer than what most of these modules do. A host serves one rank: two ranks are copies of two
hosts, so that they differ in what two real processes differ in, as the hashes of texts do.
"""

import json
import os
import random
import runpy
import sys
import traceback
from typing import Any

import numpy as np
import torch

import saccade.cli.lightning_command  # noqa: F401 - imports what the modules need


def run(job: dict[str, Any]) -> None:
    """Run a module as `python -m` does; what it prints goes into a file."""
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(job["environment"])
    sys.argv = [job["module"], job["folder"]]
    random.seed()
    np.random.seed()  # noqa: NPY002
    torch.set_num_threads(1)
    runpy.run_module(job["module"], run_name="__main__", alter_sys=True)


def main() -> None:
    """Read a job from each line of the input, and write its exit status."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                run(json.loads(line))
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
