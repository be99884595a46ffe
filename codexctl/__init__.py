"""codexctl: an open, self-hosted control plane for coding agents on machines you own."""

# A literal, because reading installed metadata costs five times a bare Python start.
__version__ = "0.1.0"
