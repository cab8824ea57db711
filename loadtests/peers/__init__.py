"""Other ways to serve the same checkpoint over the same route: what people build before they look for us."""
