"""The parts of examples/boards.py.

On the machine that runs boards.py: members.py finds the boards, videos.py and cameras.py distribute
the work. On each board: worker.py does the work, in the pool of worker_pool.py.
"""
VERSION = 4  # of the calls between boards.py and worker.py; must be the same in a board's clone
