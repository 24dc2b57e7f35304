"""What can stand in RKNNLite's place; each file can be left out."""
