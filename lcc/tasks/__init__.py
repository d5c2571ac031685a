"""Tasks: prompt templates, encoding rows to token ids, chat, question answering, cloze and FAQ."""
