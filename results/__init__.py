"""What becomes of a stream's results after the pool; each file can be left out."""
