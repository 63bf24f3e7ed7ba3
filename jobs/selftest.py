"""Tries every part of the cluster that a run needs: ray job submit … -- python jobs/selftest.py CONFIG.yaml [key=value …].

Without `ray job submit` it is an embedded Ray that is tried."""

import sys

from dft_cluster.cluster.selftest import main

if __name__ == "__main__":
    sys.exit(main())
