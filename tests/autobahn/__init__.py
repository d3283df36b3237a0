"""Autobahn's WebSocket test suite through the gateway, both ways round.

    python -m tests.autobahn.run            all 517 cases, both ways (about six minutes)
    python -m tests.autobahn.run --fast     the choice that `test_autobahn.py` runs

- way *client*: Autobahn's fuzzing client, the gateway, an echo server;
- way *server*: an echo client, the gateway, Autobahn's fuzzing server.

Every case runs twice, direct and through the gateway, and the two outcomes are compared: none may
fail that passes directly, and one that ends otherwise must stand in `differences.toml` with its
reason.

`install.py` fetches the suite (Python 2 only as released) and translates it into a virtual
environment of its own; what runs in there is `suite/`. Nothing else of the repository imports
those files, and they import nothing of the repository.
"""
