"""What determines a run, what it reads and writes, which of its work is done, and who does it."""
