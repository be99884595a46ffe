"""The rendezvous: rooms, registry, tokens and the server that carries them."""
