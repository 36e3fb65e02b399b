"""The network: tokens, masking, encoder, decoders; and the folder it is saved in."""
