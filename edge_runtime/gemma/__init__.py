"""What Gemma 4 is, with no runtime: geometry, tokens, chat turns, image patches, log-mel."""
