"""Files of weights of other projects → a model directory."""
