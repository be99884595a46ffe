"""What a device does with its hosts, through a relay or over SSH."""
