"""Texts as tokens, with what is known about each: corpora, sentences, words."""
