"""Files through which the ComfyUI nodes and the trainer talk: jobs of the queue, plans, and who wrote a caption.

The node pack has a copy (`make pack`), so this room needs the standard library alone. Both programs write these files,
at any time, and either may be killed: every file is written completely or not at all, and changes happen under a lock.
"""
