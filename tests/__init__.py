"""The tests. A test computes with one thread, as others run beside it, and so do the processes that it starts."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a sum of several threads has other bits
os.environ.setdefault("LOKY_MAX_CPU_COUNT", "1")  # a build has no processes of its own where none are asked for
