"""Documents to shards: tokenise, pack, write, and the manifest that says what an output folder holds."""
