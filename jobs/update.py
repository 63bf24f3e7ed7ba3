"""Updates a model's knowledge: python jobs/update.py CONFIG.yaml [section.key=value …] [--check | --plan]."""

import sys

from dft_cluster.cluster.job import main

if __name__ == "__main__":
    sys.exit(main())
