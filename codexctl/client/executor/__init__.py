"""The official `codex exec-server` as a host: JSON-RPC over the hybrid handshake and our relay."""
