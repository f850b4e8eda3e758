"""The nodes' test server itself: it starts, lists our nodes, refuses bad graphs, and speaks over its websocket."""

import pytest

from tests.nodes.server import ComfyServer, Refused

EMPTY = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 8, "batch_size": 1, "color": 255}},
    "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
}


def test_a_prompt_gives_its_picture(comfyui: ComfyServer):
    result, heard = comfyui.run_listening(EMPTY)
    (picture,) = result.pictures(comfyui)
    assert result.status == "success" and not result.error
    assert picture.size == (16, 8) and picture.getpixel((0, 0)) == (0, 0, 255)
    assert any(isinstance(message, dict) and message["type"] == "executed" for message in heard)


def test_a_bad_graph_is_refused(comfyui: ComfyServer):
    with pytest.raises(Refused, match="no_such_node"):
        comfyui.queue({"1": {"class_type": "no_such_node", "inputs": {}}})


def test_our_pack_is_loaded(comfyui: ComfyServer):
    assert "IMPORT FAILED" not in comfyui.log
