"""How the built-in model is made: sentences, pictures, speech, and the trainer."""
