"""myFuncs for other models than func.py's, found by the model's outputs; each file can be left out."""
