"""A module that takes its time to import, and leaves a file when it begins."""

import os
import time
from pathlib import Path

Path(f"/tmp/isoload-test-slow-{os.getppid()}").touch()
end = time.monotonic() + 3
while time.monotonic() < end:
    time.sleep(0.01)
