"""Tiny models behind a real server, for every test here."""

from server_fixtures import chat, chat_folder, plain_folder, serve

__all__ = ["chat", "chat_folder", "plain_folder", "serve"]
