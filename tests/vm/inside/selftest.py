"""`guardian selftest` against the system service, as root and as an ordinary user."""
# quick: trixie
# limit: 600

import json
import sys
import unittest

sys.path.insert(0, "/root/inside/lib")
from guard import *  # noqa: E402, F403


class Selftest(unittest.TestCase):
    def every_scenario_holds(self, not_tried, **who):
        done = guardian("--json", "selftest", timeout=280, **who)
        self.assertEqual(done.status, 0, done)
        rows = json.loads(done.out)
        self.assertEqual(len(rows), 15, rows)
        self.assertEqual({row["scenario"] for row in rows if row["verdict"] != "holds"}, not_tried, rows)
        self.assertEqual(units(), [])
        return {row["scenario"]: row for row in rows}

    def test_every_scenario_holds_for_root(self):
        rows = self.every_scenario_holds(set())
        self.assertIn("one that was moved to another cgroup", rows["escapes"]["observed"])

    def test_every_scenario_holds_for_an_ordinary_user(self):
        rows = self.every_scenario_holds({"kill_permission_validation"}, user="alice")
        self.assertRegex(rows["escapes"]["observed"], r"of [1-9] ways to a manager or a bus that this user has, it has 0 \[\]")


if __name__ == "__main__":
    unittest.main()
