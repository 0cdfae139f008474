"""Agents and the queue of the system service: in a scope and in a strict service, over deaths of guardiand."""
# quick: bookworm

import contextlib
import os
import pathlib
import re
import shutil
import sqlite3
import sys
import time
import unittest

sys.path.insert(0, "/root/inside/lib")
from guard import *  # noqa: E402, F403

CONFIG = """
[workflow.brain]
executor = "claude-cli"
grace = "2s"
loop_max = 5
loop_action = "kill"
[workflow.queue]
max_running = 2
[executor.claude-cli]
command = "/usr/local/bin/claude-stand-in"
"""


def on_record(run_id):
    """What the database has of a run."""
    with contextlib.closing(sqlite3.connect("file:/var/lib/guardian/guardian.db?mode=ro", uri=True, timeout=30)) as store:
        return store.execute("SELECT view FROM runs WHERE id = ?", [run_id]).fetchone()[0]


class Agents(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        shutil.copy("/root/inside/agents/claude", "/usr/local/bin/claude-stand-in")
        os.chmod("/usr/local/bin/claude-stand-in", 0o755)
        with open("/etc/guardian/config.toml", "a") as config:
            config.write(CONFIG)
        must("systemctl", "reload", "guardiand")

    def prompt(self, text):
        path = pathlib.Path("/var/tmp", f"prompt-{time.monotonic_ns()}")
        path.write_text(text)
        self.addCleanup(path.unlink)
        return path

    def agent(self, mode):
        """A detached agent of alice's, in a strict service."""
        run_id = detach("--workflow", "brain", "--prompt-file", self.prompt(mode), "--", "claude", user="alice")
        self.addCleanup(nothing_left, run_id)
        self.addCleanup(guardian, "kill", "--force", run_id)
        return run_id

    def test_an_agent_in_a_scope_works_and_is_told_of(self):
        done = guardian("run", "--workflow", "brain", "--prompt-file", self.prompt("healthy 3"), "--", "claude", user="alice")
        self.assertEqual(done.status, 0, done)
        types = [json.loads(line)["type"] for line in done.out.splitlines()]
        self.assertEqual((types[0], types[-1]), ("system", "result"), "its output is passed on")
        past = json.loads(must("guardian", "--json", "history", "-n", "1", user="alice"))[0]
        progress = past["progress"]
        self.assertEqual((progress["turns"], progress["cost_micro_usd"]), (3, 37500), past)

    def test_an_agent_in_a_service_is_followed_and_ended_with_its_servers(self):
        run_id = self.agent("in_turn")
        until("its turn is shown", lambda: show(run_id, "alice")["heartbeats"]["status"] == "turn 1: Bash")
        self.assertIn("mcp-server-files", must("ps", "-e", "-o", "args"))
        until("it is on record", lambda: "turn 1: Bash" in on_record(run_id))
        must("systemctl", "kill", "-s", "KILL", "guardiand")
        until("guardiand serves", lambda: guardian("--system", "ps").status == 0)
        self.assertEqual(show(run_id)["heartbeats"]["status"], "turn 1: Bash", "it is known to the next one")
        self.assertEqual(guardian("kill", run_id, user="alice").status, 0)
        receipt = show(run_id)["receipt"]
        self.assertEqual(receipt["survivors"], 0)
        # Its server ends with it, and may have done so before its own signal comes.
        self.assertGreaterEqual(receipt["terminated"], 2, "the relay, the agent")
        self.assertNotIn("mcp-server-files", must("ps", "-e", "-o", "args"))

    def test_an_agent_that_loops_in_a_service_is_ended_by_the_rule_and_told_why(self):
        run_id = self.agent("looping 30")
        until("it is over", lambda: show(run_id)["phase"] == "finished")
        outcome = show(run_id, "alice")["outcome"]
        self.assertEqual((outcome["kind"], outcome["reason"]), ("killed", "loop"), outcome)
        told = journal(f"GUARDIAN_RUN_ID={run_id}")
        # On a slow host the agent is some calls further when it is heard.
        sentence = r"kill intent: Bash was called ([5-9]|\d\d) times in a row with the same arguments: npm test"
        self.assertTrue([entry for entry in told if re.search(sentence, entry["MESSAGE"])], [e["MESSAGE"] for e in told])

    def test_what_is_queued_has_its_turn_once_over_deaths_of_guardiand(self):
        log = pathlib.Path("/var/tmp/queue-log")
        log.touch()
        os.chmod(log, 0o666)
        self.addCleanup(log.unlink)
        blockers = [detach("--workflow", "queue", "--", "sleep", "1000", user="alice") for _ in range(2)]
        script = f"echo begin $0 >> {log}; sleep 0.3; echo end $0 >> {log}"
        ids = {}
        for n in range(20):
            user = "alice" if n < 14 else "bob"
            ids[detach("--workflow", "queue", "--", "sh", "-c", script, str(n), user=user)] = n
        queued = {r["run_id"] for r in runs("root", "--phase", "queued")}
        self.assertEqual(queued, set(ids))
        self.assertIn("queued 1/20", must("guardian", "ps"))
        kept = pathlib.Path("/var/lib/guardian/queue")
        self.assertEqual({path.name for path in kept.iterdir()}, set(ids))
        self.assertEqual(kept.stat().st_mode & 0o777, 0o700)
        self.assertNotEqual(run("ls", kept, user="alice").status, 0)
        self.assertEqual(guardian("kill", "--force", *blockers).status, 0)

        def ended():
            return sum(line.startswith("end") for line in log.read_text().splitlines())

        for through in [4, 9, 14]:
            until(f"{through} are through", lambda: ended() >= through, 120)
            must("systemctl", "reset-failed", "guardiand")
            must("systemctl", "kill", "-s", "KILL", "guardiand")
        until("all are through", lambda: ended() == 20, 120)
        for run_id, n in ids.items():
            self.assertEqual(guardian("wait", run_id).status, 0, show(run_id))
            nothing_left(run_id)
        lines = [tuple(line.split()) for line in log.read_text().splitlines()]
        self.assertEqual(sorted(int(n) for what, n in lines if what == "begin"), list(range(20)), "each is executed once")
        live, most = 0, 0
        for what, _ in lines:
            live += 1 if what == "begin" else -1
            most = max(most, live)
        self.assertLessEqual(most, 2, "no more at once than may")
        order = [int(n) for what, n in lines if what == "begin"]
        # Alice has the first turn after each start, and two that start at once may pass each other.
        self.assertLess(max(order.index(n) for n in range(14, 20)), 18, f"bob has as many turns as alice: {order}")
        until("nothing is kept of what is over", lambda: not list(kept.iterdir()))


if __name__ == "__main__":
    unittest.main()
