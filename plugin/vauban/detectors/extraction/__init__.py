"""Model extraction: who explores the model systematically, told from the order and the spread of
the embeddings of a caller's queries. `detector.py` has the whole; the rest are its parts."""
