"""The path from a manifest line to the loss stays short enough to be read in an hour."""

import subprocess
import sys

MOST_FILES, MOST_LINES = 35, 5000
COUNT = """
import sys
import ossicle.train
paths = [module.__file__ for name, module in sys.modules.items() if name.partition(".")[0] == "ossicle"]
print(len(paths), sum(len(open(path, encoding="utf-8").readlines()) for path in paths))
"""


def test_the_path_to_the_loss_is_short():
    done = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True)
    files, lines = map(int, done.stdout.split())
    print(f"\nimport ossicle.train: {files} files, {lines} lines")
    assert files <= MOST_FILES
    assert lines <= MOST_LINES
