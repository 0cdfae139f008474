"""What was asked and answered, held to the OpenAPI document: document.py < RECORD, with python3-jsonschema.

RECORD is an object: `document`; `replies`, each with operation ("get /path"), status, media and body; and `bodies` of requests,
each with operation, body, and whether it was `taken`. Whatever is not as the document says is printed, and makes it fail.
"""

import json
import sys
from datetime import datetime

from jsonschema import Draft202012Validator, FormatChecker

record = json.load(sys.stdin)
document = record["document"]
complaints = []
formats = FormatChecker()


@formats.checks("date-time", raises=ValueError)
def is_time(value):
    """RFC 3339: a day, a time and a zone."""
    if not isinstance(value, str):
        return True
    return datetime.fromisoformat(value.replace("Z", "+00:00")).tzinfo is not None


def wrong_with(schema, value):
    """The first thing about a value that is not as its schema has it, or nothing."""
    # What a schema refers to is looked up in the schema itself.
    whole = Draft202012Validator({**schema, "components": document["components"]}, format_checker=formats)
    found = next(whole.iter_errors(value), None)
    return found and f"{found.json_path}: {found.message}"


def operation(name):
    verb, path = name.split(" ")
    return document["paths"][path][verb]


def complain(what, why):
    if why:
        complaints.append(f"{what}: {str(why)[:600]}")


Draft202012Validator.check_schema({"components": document["components"], "$defs": document["components"]["schemas"]})
done = set()
for reply in record["replies"]:
    name, status = reply["operation"], str(reply["status"])
    what = f"{name} answers {status}"
    described = operation(name)["responses"].get(status)
    if described is None:
        complain(what, "the document has no such status")
        continue
    if status.startswith("2"):
        done.add(name)
    content = described.get("content", {})
    schema = content.get(reply["media"], content.get("*/*"))
    if schema is None:
        complain(what, f"{reply['media']} is none of {list(content)}" if content or reply["body"] else None)
    elif reply["media"] == "application/json":
        complain(what, wrong_with(schema["schema"], json.loads(reply["body"])))
for sent in record["bodies"]:
    schema = operation(sent["operation"])["requestBody"]["content"]["application/json"]["schema"]
    Draft202012Validator.check_schema(schema)
    wrong = wrong_with(schema, sent["body"])
    what = f"{sent['operation']} of {json.dumps(sent['body'])[:200]}"
    if sent["taken"]:
        complain(f"{what} was taken", wrong)
    elif not wrong:
        complain(f"{what} was refused", "the document allows it")
for path, verbs in document["paths"].items():
    for verb in verbs:
        if f"{verb} {path}" not in done:
            complain(f"{verb} {path}", "no answer of 2xx is on record")
print("\n".join(complaints))
sys.exit(1 if complaints else 0)
