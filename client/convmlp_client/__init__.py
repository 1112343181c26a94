"""Client of ConvMLP Serving."""
