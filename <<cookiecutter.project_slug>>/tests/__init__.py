"""The project's tests; they mirror `src/`."""

import os

# Models here are tiny: threads that wait for one another cost more than they save.
os.environ.setdefault("OMP_NUM_THREADS", "1")
