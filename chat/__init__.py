"""Clients of chat models, behind a server or on this machine."""
