"""Records of Visual Genome."""
