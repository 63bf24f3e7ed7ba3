"""Compares methods on the same models, facts and ranks: python jobs/compare.py CONFIG.yaml [dotted.key=value …] [--check]."""

import sys

from dft_cluster.cluster.compare_job import main

if __name__ == "__main__":
    sys.exit(main())
