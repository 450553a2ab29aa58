"""Ports for servers that tests start."""

import random
import socket


def free_port() -> int:
    """A free port below those that outgoing connections are given, whose sister, 10000 above, is free too."""
    while True:  # SeaweedFS speaks gRPC on the sister
        port = random.SystemRandom().randrange(10_100, 22_000)
        with socket.socket() as one, socket.socket() as other:
            try:
                one.bind(("127.0.0.1", port))
                other.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            return port
