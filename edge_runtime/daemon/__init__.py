"""The daemon: requests come in over MQTT, wait in a queue, run one at a time, and go out as answers."""
