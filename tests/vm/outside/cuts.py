"""The power is cut ten times while runs are launched and killed: what Guardian acknowledged is on record when it is back."""
# limit: 1500
# quick: trixie

import json
import os
import random
import re
import sys
import threading
import time
import unittest
from pathlib import Path

from labs.machine import Dead, Machine

SUITE = os.environ.get("GUARDIAN_SUITE", "trixie")
CUTS = 2 if os.environ.get("GUARDIAN_QUICK") == "1" else 10
INSTALL = "DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends /root/guardian.deb"
# Says what was acknowledged, once it was: each row of the audit that a follower is told, each run, each kill.
LOAD = r"""
guardian --json audit --follow --after "$1" | sed -u 's/^/row /' &
while :; do
  run=$(guardian run --detach --grace 1s --init-timeout off -- sh -c "trap '' TERM; setsid sleep 1000 & sleep 1000") || continue
  echo "run $run"
  case $run in
    *[0-4]) guardian kill --force "$run" >/dev/null 2>&1 && echo "killed $run" ;;
    *[5-9]) guardian kill --no-wait --reason "cut $run" "$run" >/dev/null 2>&1 && echo "intent $run" ;;
  esac
done
"""


class Cuts(unittest.TestCase):
    def test_what_was_acknowledged_is_on_record_after_each_cut(self):
        deb = os.environ.get("GUARDIAN_DEB")
        self.assertTrue(deb, "there is no package")
        rows, told = {}, {"run": set(), "killed": set(), "intent": set()}
        with Machine.restore(SUITE, own_disk=True) as machine:
            machine.put({"/root/guardian.deb": Path(deb), "/root/load": LOAD})
            machine.run(INSTALL + "; sync")  # or the first cut takes the load away
            for cut in range(CUTS):
                before = {kind: len(ids) for kind, ids in told.items()}
                self.load(machine, rows, told)
                machine.start()
                self.whole(machine, rows, told)
                new = {kind: len(ids) - before[kind] for kind, ids in told.items()}
                print(f"cut {cut + 1}: {new}, {len(rows)} rows of the audit told so far", file=sys.stderr)
        self.assertGreaterEqual(len(told["killed"]), 2 * CUTS)
        self.assertGreaterEqual(len(told["intent"]), 2 * CUTS)

    def test_what_was_not_synced_is_lost_so_these_are_power_cuts(self):
        with Machine.restore(SUITE, own_disk=True) as machine:
            machine.run("echo synced >/root/synced; sync; echo 3 >/proc/sys/vm/drop_caches; echo not >/root/not-synced")
            machine.power_cut()
            with self.assertRaises(Dead):
                machine.run("true", patience=5)
            machine.start()
            self.assertEqual(machine.get("/root/synced"), b"synced\n")
            self.assertNotEqual(machine.run("cat /root/not-synced", check=False).output, "not\n")

    def load(self, machine, rows, told):
        """Launches and kills until the power is cut, at no special moment; takes down what was acknowledged."""
        heard = bytearray()

        def work():
            try:
                machine.run(["bash", "/root/load", str(max(rows, default=0))], timeout=600, echo=heard.extend)
            except Dead:
                pass

        worker = threading.Thread(target=work)
        worker.start()
        deadline = time.monotonic() + 60
        while heard.count(b"\nkilled ") < 2 or heard.count(b"\nintent ") < 2:
            self.assertTrue(worker.is_alive(), f"the load has ended: {heard}")
            self.assertLess(time.monotonic(), deadline, heard)
            time.sleep(0.05)
        time.sleep(random.random() * 2)
        machine.power_cut()
        worker.join()
        for line in heard.decode().split("\n")[:-1]:
            kind, _, what = line.partition(" ")
            if kind == "row":
                row = json.loads(what)
                rows[row["seq"]] = row
            elif kind in told:
                self.assertRegex(what, r"^run_[0-9a-f]{12}$")
                told[kind].add(what)

    def whole(self, machine, rows, told):
        """Everything that was told is there, the chain and the database are whole, and no run is taken for a live one."""
        machine.run("guardian audit verify")
        self.assertEqual(machine.run("sqlite3 /var/lib/guardian/guardian.db 'pragma integrity_check'").output.strip(), "ok")
        kept = [json.loads(line) for line in machine.run("guardian --json audit").output.splitlines()]
        kept = {row["seq"]: row for row in kept}
        for seq, row in rows.items():
            self.assertEqual(kept.get(seq), row)
        runs = {run["run_id"]: run for run in json.loads(machine.run("guardian --json history -n 10000").output)}
        for run_id in told["run"]:
            self.assertIn(run_id, runs)
            self.assertEqual(runs[run_id]["phase"], "finished")
        for run_id in told["killed"]:
            self.assertEqual(runs[run_id]["outcome"]["kind"], "killed")
        intents = {row["run_id"] for row in kept.values() if row["kind"] == "kill_intent"}
        self.assertLessEqual(told["killed"] | told["intent"], intents)
        self.assertEqual(json.loads(machine.run("guardian --json ps").output), [])
        self.assertFalse(re.findall(r"guardian-run_\w+", machine.run("systemctl list-units --all --plain --no-legend").output))


if __name__ == "__main__":
    unittest.main()
