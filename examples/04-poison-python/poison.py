"""Sends a running shop an order that nobody can read, then shows where it ended.

    python3 poison.py [BODY]

Each consumer that cannot read the body puts it into its own dead letters, at once and with the
reason, and goes on with the next order. This program looks at those of the payment service without
taking them away.
"""

import os
import sys
import time
import uuid

import pika

DEAD_LETTERS = "payment.order-placed.v1.dead"
PATIENCE_SECONDS = 20


def main() -> None:
    # Something to know it by again: dead letters may be there already.
    mark = uuid.uuid4().hex
    body = sys.argv[1] if len(sys.argv) > 1 else '{"orderId": "broken", "amount":'

    url = os.environ.get("AMQP_URL", "amqp://localhost")
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.confirm_delivery()
    properties = pika.BasicProperties(message_id=mark)
    channel.basic_publish("order_events", "", body.encode(), properties)
    print(f"published {body}")

    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        for found, reason in look(connection):
            if found == mark:
                print(f"dead letter in {DEAD_LETTERS}: {reason}")
                connection.close()
                return
        time.sleep(0.1)
    sys.exit(f"no dead letter in {DEAD_LETTERS} after {PATIENCE_SECONDS} s")


def look(connection):
    """All dead letters with their ids and reasons; closing the channel puts them back."""
    channel = connection.channel()
    letters = []
    while True:
        method, properties, _body = channel.basic_get(DEAD_LETTERS)
        if method is None:
            break
        headers = properties.headers or {}
        letters.append((properties.message_id, headers.get("tidings-reason")))
    channel.close()
    return letters


if __name__ == "__main__":
    main()
