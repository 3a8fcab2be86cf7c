"""Clients in other languages: generated from openapi.json, compiled, and run against a live server."""
