"""One encrypted connection between a device and a host that outlives its WebSocket."""
