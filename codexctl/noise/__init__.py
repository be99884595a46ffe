"""Noise handshakes and transports; the only package that touches noiseprotocol."""
