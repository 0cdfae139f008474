#!/usr/bin/python3
"""Commands under Guardian from Python, where subprocess was: guarded.py COMMAND [ARGUMENT]... shows one.

Copy it; it needs nothing but `guardian` in the path. What subprocess loses (a child that called setsid, a daemon, a hang) is
ended or named:

    from guarded import Guarded, run

    done = run(["make", "test"], workflow="ci", max_runtime="45m")     # like subprocess.run(..., capture_output=True)
    if done.limit:                                                     # "max_runtime", "idle_timeout", ... or None
        print(done.sentence)

    agent = Guarded(["./agent", "--headless"], workflow="agent")       # like subprocess.Popen, but it survives this process
    agent.kill("the user cancelled")                                   # returns when nothing of it is left
"""

import json
import subprocess
import sys
from dataclasses import dataclass


@dataclass
class Ended:
    """How a run ended: `guardian show --json` as a whole is in `view`."""

    run_id: str
    returncode: int  # that of the command; 124 for a limit, 137 for a kill, 125 if nobody knows, 128 + N for signal N
    output: bytes  # what it wrote, standard output and standard error together
    view: dict

    @property
    def limit(self):
        """The rule that ended it, or None."""
        return self.view["outcome"].get("reason") if self.returncode == 124 else None

    @property
    def sentence(self):
        """How it ended, in words."""
        return self.view["outcome"]["text"]


def guardian(*words, check=True):
    """A verb of guardian: what it wrote. Raises CalledProcessError, whose stderr says what, why and what to do."""
    return subprocess.run(["guardian", *words], stdin=subprocess.DEVNULL, capture_output=True, check=check)


class Guarded:
    """A detached run. It goes on if this process ends: keep `run_id` to find it again."""

    def __init__(self, command, workflow=None, name=None, cwd=None, **limits):
        """Limits as on the command line: max_runtime="45m", idle_action="kill", memory_max="2G"."""
        words = [f"--{key.replace('_', '-')}={value}" for key, value in limits.items()]
        words += [f"--{key}={value}" for key, value in [("workflow", workflow), ("name", name), ("cwd", cwd)] if value]
        self.run_id = guardian("run", "--detach", *words, "--", *command).stdout.decode().strip()

    def show(self):
        """How it is: phase, health and its reasons, what it uses, heartbeats, processes."""
        return json.loads(guardian("show", "--json", self.run_id).stdout)[0]

    def kill(self, reason, force=False):
        """Ends it, and returns the receipt: nothing of it is left then."""
        words = ["--force"] if force else []
        killed = guardian("kill", "--json", *words, f"--reason={reason}", self.run_id)
        return json.loads(killed.stdout)

    def wait(self, timeout=None):
        """Waits for its end. subprocess.TimeoutExpired after so many seconds; the run goes on then."""
        words = [f"--timeout={int(timeout * 1000)}ms"] if timeout is not None else []
        waited = guardian("wait", "--json", *words, self.run_id, check=False)
        if waited.returncode == 10 and not waited.stdout:
            raise subprocess.TimeoutExpired(["guardian", "wait", self.run_id], timeout)
        if not waited.stdout:
            waited.check_returncode()
        output = guardian("logs", self.run_id).stdout
        return Ended(self.run_id, waited.returncode, output, json.loads(waited.stdout))


def run(command, timeout=None, **options):
    """Runs a command to its end. What it has not done in `timeout` seconds is ended, with all that it started."""
    if timeout is not None:
        options["max_runtime"] = f"{int(timeout * 1000)}ms"
    started = Guarded(command, **options)
    try:
        return started.wait()
    except BaseException:
        # A KeyboardInterrupt, say: what subprocess.run would do, and it loses nobody.
        started.kill("its caller was interrupted")
        raise


if __name__ == "__main__":
    ended = run(sys.argv[1:] or ["sh", "-c", "echo hello"])
    sys.stdout.buffer.write(ended.output)
    print(f"{ended.run_id}: {ended.sentence}", file=sys.stderr)
    sys.exit(ended.returncode)
