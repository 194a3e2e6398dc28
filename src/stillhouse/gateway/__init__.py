"""The server that stands before a model: its wire, its routes, its store, its pages."""
