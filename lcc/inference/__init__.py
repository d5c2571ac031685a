"""Running a model to answer: requests, sessions, and our own in-process decoding."""
