"""A module that takes its time to import."""

import time

end = time.monotonic() + 3
while time.monotonic() < end:
    time.sleep(0.01)
