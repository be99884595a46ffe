"""The official app-server on a host: supervised, its events kept, its questions put to people."""
