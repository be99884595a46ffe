"""The exec-server of the official agent, on a codexctl host: its JSON-RPC over a channel."""
