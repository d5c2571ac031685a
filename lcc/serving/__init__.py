"""The HTTP server: endpoints of the OpenAI API over an inference session."""
