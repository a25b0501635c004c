"""What labelled objects are written as; one file a format."""
