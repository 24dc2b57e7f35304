"""What examples/boards.py is made of: members.py, who is there; videos.py and cameras.py, what is shared out among
them; worker.py, what each board does."""
VERSION = 1  # of what worker.py and the others say to each other; a board's clone must have the same
