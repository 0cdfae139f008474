#!/usr/bin/env python3
"""The HTTP interface as its OpenAPI document has it, tried by schemathesis: tests/web/api.py --guardian EXE --web EXE
--schemathesis EXE [--seed N]

Against a private instance and a guardian-web of its own, with runs in each state. What is answered has to be what the document
says, what the document allows has to be taken, and what it forbids refused; and nothing may be answered with 500 or more.

By hand, since schemathesis is no package of Debian's: `python3 -m venv DIR && DIR/bin/pip install 'schemathesis>=4,<5'`, and then
`--schemathesis DIR/bin/schemathesis`. What can be said without it is in document.rs, which tests/run runs.
"""
import argparse
import subprocess
import sys
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))
from stage import Instance  # noqa: E402

# Events do not end, so that schemathesis would wait for them until it gives up: document.rs reads how they begin, and lives.rs
# what they tell.
LEFT_OUT = ["events"]
# A value that fits the document can still make no sense: a limit that the run does not have, a directory that there is not.
CONFIG = """
hooks = "hooks.py"

[[operations]]
include-operation-id = "extendRun"
checks.positive_data_acceptance.expected-statuses = ["2xx", "403", "404", "409", "422"]

[[operations]]
include-operation-id = "startRun"
parameters = { "path.executor" = "local", "path.workflow" = "builder" }
checks.positive_data_acceptance.expected-statuses = ["2xx", "422"]
"""
# Whatever a body would have executed, it is given to true(1), which does nothing with it; what makes no command stays as it is.
HOOKS = """
import schemathesis

@schemathesis.hook
def map_body(context, body):
    if context.operation.path.endswith("/run/{workflow}") and isinstance(body, dict):
        command = body.get("command")
        if isinstance(command, list) and command:
            body = {**body, "command": ["true", *command]}
            for name in ("cwd", "workspace_path"):
                # One that is too long has to be refused.
                if isinstance(body.get(name), str) and len(body[name]) <= 4096:
                    body[name] = "/"
    return body
"""
SHOWN = 60


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ["guardian", "web", "schemathesis"]:
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    instance = Instance(args.guardian, args.web)
    try:
        instance.start("--workflow", "builder", "--readiness", "exec", "--max-runtime", "1h", "--", "sleep", "1000")
        instance.start("--", "sh", "-c", "echo up; exit 3")
        token = instance.token("starter", "schemathesis")
        instance.serve()
        at = f"http://127.0.0.1:{instance.port}"
        config = instance.dir / "schemathesis.toml"
        config.write_text(CONFIG)
        (instance.dir / "hooks.py").write_text(HOOKS)
        command = [args.schemathesis, "--config-file", str(config), "run", f"{at}/api/v1/openapi.json", "--url", at]
        command += ["--header", f"Authorization: Bearer {token}", "--phases", "examples,coverage,fuzzing", "--max-examples", "15"]
        command += ["--seed", str(args.seed), "--generation-database", "none", "--no-color", "--request-timeout", "30"]
        for operation in LEFT_OUT:
            command += ["--exclude-operation-id", operation]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=instance.dir)
        lines = done.stdout.splitlines()
        print("\n".join(lines if done.returncode else lines[-SHOWN:]))
        # Runs may have been ended: schemathesis finds their ids in what it is answered.
        if instance.server.poll() is not None or not instance.json("ps", "--all"):
            print("guardian-web or the instance did not live through it", file=sys.stderr)
            return 1
        return done.returncode
    finally:
        instance.close()


if __name__ == "__main__":
    sys.exit(main())
