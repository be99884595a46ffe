"""Workspaces: plan, journal, keys, ssh_config, readiness."""
