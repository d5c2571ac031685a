"""A model behind HTTP: OpenAI's endpoints, limits on all a client can ask, one page to try it."""
