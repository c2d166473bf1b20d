"""Vocabulary, UniRep, text and chat: everything that turns content into ids and back."""
