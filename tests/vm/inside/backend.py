"""The backend of a user's systemd manager, by its own tests: the manager stopped, the bus killed, scopes that nobody removes."""
# needs: tests
# quick: bookworm

import os
import re
import sys
import unittest

sys.path.insert(0, "/root/inside/lib")
from guard import must, run  # noqa: E402


class Backend(unittest.TestCase):
    def test_each(self):
        must("install", "-m", "755", "/root/systemd-tests", "/usr/local/lib/systemd-tests")
        command = ["/usr/local/lib/systemd-tests", "--ignored", "--test-threads=1"]
        env = {"PATH": os.environ["PATH"], "XDG_RUNTIME_DIR": "/run/user/1000"}
        done = run(*command, user="alice", env=env, timeout=280)
        print(done.out, file=sys.stderr)
        self.assertEqual(done.status, 0, done)
        self.assertGreaterEqual(int(re.search(r"test result: ok. (\d+) passed", done.out)[1]), 12)


if __name__ == "__main__":
    unittest.main()
