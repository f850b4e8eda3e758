"""Exit status 0 if ComfyUI answers on a port (8188 by default). /system_stats does no work on the GPU."""

import sys
import urllib.request

url = f"http://127.0.0.1:{sys.argv[1] if len(sys.argv) > 1 else 8188}/system_stats"
with urllib.request.urlopen(url, timeout=5) as answer:
    sys.exit(answer.status != 200)
