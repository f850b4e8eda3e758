"""Model files from the Hugging Face Hub.

    wanted > api > jobs > fetch > record

`huggingface_hub` handles endpoint, login, sessions, redirects and errors. This package requests the bytes itself, in
ranges, because the library starts a file again from its beginning after the program has been interrupted. A file gets
its final name only when it is complete and its checksum is right.
"""
