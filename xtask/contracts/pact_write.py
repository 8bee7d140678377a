"""Writes the pact of `pact-write.cjs` with Pact's own library for Python.

    python3 pact_write.py FOLDER

The file is FOLDER/newsletter-orders.json.
"""

import json
import os
import pathlib
import sys

# Before the library is loaded: it reports to its makers how it is used.
os.environ["PACT_DO_NOT_TRACK"] = "true"

from pact import Pact, match

MESSAGES = {
    "order-confirmed.v1": {
        "orderId": match.str("0198c5a2-93b0-7e57-a54a-2f7b8f3c9d10"),
        "amount": match.decimal(129.5),
        "customerId": match.like("customer-7"),
        "status": "CONFIRMED",
    },
    "order-placed.v1": {
        "orderId": match.str("0198c5a2-93b0-7e57-a54a-2f7b8f3c9d10"),
        "currency": match.regex("EUR", regex="^[A-Z]{3}$"),
        "items": match.each_like(
            {"sku": match.str("TEA-SENCHA"), "quantity": match.int(2)}, min=1
        ),
    },
}


def metadata(message_type):
    message_id = "0198c5a2-93b0-7e57-a54a-2f7b8f3c9d11"
    return {
        "type": message_type,
        "messageId": match.regex(message_id, regex="^[0-9a-f-]{36}$"),
    }


def handle(body, _metadata):
    if not json.loads(body)["orderId"]:
        raise ValueError("the example has no order")


def main(folder):
    pact = Pact("newsletter", "orders").with_specification("V4")
    for message_type, body in MESSAGES.items():
        interaction = pact.upon_receiving(message_type, "Async")
        interaction.given("an order of customer-7", customerId="customer-7")
        interaction.with_body(body, "application/json")
        interaction.with_metadata(metadata(message_type))
    pact.verify(handle, "Async")
    pact.write_file(folder)
    print(json.dumps({"file": str(pathlib.Path(folder) / "newsletter-orders.json")}))


if __name__ == "__main__":
    main(*sys.argv[1:])
