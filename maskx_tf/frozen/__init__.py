"""What a frozen detector computes, kept so that it is computed once."""
