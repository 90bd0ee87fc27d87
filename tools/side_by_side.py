"""Print how many processes `make test` and its like run tests in: a core and 4 GB for each."""

import os

from rdsnet.openmp import usable_cpus

BYTES_EACH = 4 * 2**30  # a worker that has gone through long tests had 3.6 GB


def processes(threads: int = 1) -> int:
    """As many as usable cores, with so many threads each, and the machine's memory are enough for;
    1 at least.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(usable_cpus() // threads, memory // BYTES_EACH))


if __name__ == "__main__":
    print(processes())
