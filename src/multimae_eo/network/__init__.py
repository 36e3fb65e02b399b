"""The network, without input or output: tokens, masking, encoder, decoders, heads."""
