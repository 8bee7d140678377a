"""Verifies a pact of messages with Pact's own verifier, driven by its library for Python.

    python3 pact_verify.py PACT MESSAGES

Takes and tells the same as `pact-verify.cjs`.
"""

import json
import os
import pathlib
import sys
import traceback

# Before the library is loaded: it reports to its makers how it is used.
os.environ["PACT_DO_NOT_TRACK"] = "true"

from pact import Verifier

# How long the verifier waits for a message: the machine may be busy.
REQUEST_MS_MAX = 60_000


def message(sent):
    metadata = sent.get("metadata") or {}
    return {
        "contents": json.dumps(sent["body"]).encode(),
        "metadata": metadata,
        "content_type": metadata.get("contentType", "application/json"),
    }


def errors_of(verifier):
    """What the verifier found; an error if it did not come to an end."""
    try:
        verifier.verify()
    except RuntimeError:
        if not verifier.results["errors"]:
            raise
    return verifier.results["errors"]


def main(pact_file, messages_file):
    pact = json.loads(pathlib.Path(pact_file).read_text())
    messages = json.loads(pathlib.Path(messages_file).read_text())
    if not pact.get("interactions"):
        raise ValueError(f"{pact_file}: there is no interaction to verify")
    for interaction in pact["interactions"]:
        if interaction["description"] not in messages:
            description = interaction["description"]
            raise ValueError(f"{messages_file}: there is no message for `{description}`")
    verifier = Verifier(pact["provider"]["name"], host="127.0.0.1")
    verifier.set_coloured_output(enabled=False)
    verifier.set_request_timeout(REQUEST_MS_MAX)
    verifier.add_source(pact_file)
    verifier.message_handler({name: message(sent) for name, sent in messages.items()})
    errors = errors_of(verifier)
    for error in errors:
        mismatch = error["mismatch"]
        for found in mismatch.get("mismatches", [mismatch]):
            print(json.dumps({"interaction": error["interaction"], **found}))
    return 1 if errors else 0


if __name__ == "__main__":
    try:
        code = main(*sys.argv[1:])
    except Exception:
        traceback.print_exc()
        code = 2
    sys.exit(code)
