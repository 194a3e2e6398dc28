"""The server in front of a model: its wire, its stores, its administration."""
