"""Serve a trained model over HTTP and WebSockets, with the interface of OpenAI's API."""
