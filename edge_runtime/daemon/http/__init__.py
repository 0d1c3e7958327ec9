"""The HTTP server: OpenAI's API, spoken conversations over a WebSocket, health and metrics.

A thread of the daemon with an event loop of its own. What is asked goes through the daemon's one queue, like what comes
over MQTT; nothing here computes.
"""
