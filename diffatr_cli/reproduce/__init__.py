"""The paper's tables at one command: what to train, what is there, and the tables themselves."""
