"""The benchmarks import each other as modules of one folder; here the tests find them too."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
