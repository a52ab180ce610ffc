"""Agents that click."""
