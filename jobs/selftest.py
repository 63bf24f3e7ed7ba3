"""Tries every part of your own cluster that a run needs: python jobs/selftest.py CONFIG.yaml [section.key=value …]."""

import sys

from dft_cluster.cluster.selftest import main

if __name__ == "__main__":
    sys.exit(main())
