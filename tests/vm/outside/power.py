"""The power is cut in the middle of writes: what a program was told is on the disk is there when the machine is back."""
# needs: none

import os
import time
import unittest

from labs.machine import Dead, Machine

SUITE = os.environ.get("GUARDIAN_SUITE", "trixie")
# Says of each number that it is on the disk, once it is; then goes on to the next.
WRITER = """
import os
log = os.open("/var/lib/numbers", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
directory = os.open("/var/lib", os.O_RDONLY)
os.fsync(directory)
for number in range(1_000_000):
    os.write(log, b"%d\\n" % number)
    os.fsync(log)
    with open("/run/acknowledged.new", "w") as said:
        said.write(str(number))
    os.rename("/run/acknowledged.new", "/run/acknowledged")  # or cat makes 90 of 9 and 10
"""


class Power(unittest.TestCase):
    def test_what_was_synced_is_there_after_a_power_cut(self):
        with Machine.restore(SUITE, own_disk=True) as machine:
            machine.put({"/root/writer.py": WRITER})
            before = machine.run("cat /proc/sys/kernel/random/boot_id").output
            machine.run("systemd-run --quiet --unit=writer python3 /root/writer.py")
            acknowledged = self.acknowledged(machine, 50)
            machine.power_cut()
            with self.assertRaises(Dead):
                machine.run("true", patience=5)

            machine.start()
            self.assertNotEqual(machine.run("cat /proc/sys/kernel/random/boot_id").output, before)
            numbers = machine.get("/var/lib/numbers").split(b"\n")[:-1]
            self.assertGreater(len(numbers), acknowledged)
            # What came after the last sync may be there, in part or not at all; no number before it may be lost.
            self.assertEqual(numbers[:acknowledged + 1], [b"%d" % n for n in range(acknowledged + 1)])
            self.assertIn("recovery complete", machine.journal("-k"), "the power was not cut in the middle of anything")

    def test_what_was_not_synced_is_lost_so_this_is_a_power_cut(self):
        with Machine.restore(SUITE, own_disk=True) as machine:
            machine.run("echo synced >/root/synced; sync; echo 3 >/proc/sys/vm/drop_caches; echo not >/root/not-synced")
            machine.power_cut()
            machine.start()
            self.assertEqual(machine.get("/root/synced"), b"synced\n")
            self.assertNotEqual(machine.run("cat /root/not-synced", check=False).output, "not\n")

    def acknowledged(self, machine, fewest):
        """The last number that the writer knows to be on the disk, once there are enough."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            text = machine.run("cat /run/acknowledged", check=False).output.strip()
            if text.isdigit() and int(text) >= fewest:
                return int(text)
            time.sleep(0.2)
        raise AssertionError(f"the writer writes too slowly: {text!r}\n{machine.journal('-u', 'writer')}")


if __name__ == "__main__":
    unittest.main()
