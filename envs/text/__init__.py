"""Environments of text: their base class, and answers in JSON to a query."""
