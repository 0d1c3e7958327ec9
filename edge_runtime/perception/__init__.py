"""Ears, eyes and a voice: sources that yield speech or frames. They know nobody above them.

Each source owns a thread, keeps itself alive (a device that goes away is waited for, with back-off), never lets a
backlog grow, and says how it is by its `status`. What is heard comes as an `Utterance` that fills while the person
speaks; what is seen, as the newest `Frame`; what is to be said goes to a `Speaker` piece by piece.
"""
