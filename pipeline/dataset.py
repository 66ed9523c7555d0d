"""Says where the former command `python -m pipeline.dataset` is now."""

import sys

if __name__ == "__main__":
    sys.exit("error: python -m pipeline.dataset is now python -m pipeline.benchmark_loader; its flags are the same")
