"""Model files from the Hugging Face hub, whole or not at all.

    wanted ► api ► plan ► fetch ► record

`huggingface_hub` does the talking: endpoint, login, sessions, redirects, errors. The bytes of a file are asked for
range by range, because the library's own download of a file begins anew when the program has been ended.
"""
