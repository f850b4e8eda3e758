"""Graphs built on ComfyUI's page, and what Concept Prompt says there."""

from typing import Any

ADD = """([type, x, y, values]) => {
  const node = LiteGraph.createNode(type)
  node.pos = [x, y]
  app.graph.add(node)
  for (const [name, value] of Object.entries(values)) node.widgets.find((w) => w.name === name).value = value
  return node.id
}"""
LINK = """([from, output, to, input]) => {
  const [a, b] = [from, to].map((id) => app.graph.getNodeById(id))
  const out = typeof output === 'number' ? output : a.outputs.findIndex((slot) => slot.type === output)
  a.connect(out, b, typeof input === 'number' ? input : b.inputs.findIndex((slot) => slot.name === input))
}"""
WRAP = """(ids) => {
  const nodes = new Set(ids.map((id) => app.graph.getNodeById(id)))
  return app.graph.convertToSubgraph(nodes).node.id
}"""
PLACE = """([id, name]) => {
  const node = app.graph.getNodeById(id)
  const widget = node.widgets.find((each) => each.name === name)
  const inside = [node.pos[0] + node.size[0] / 2, node.pos[1] + (widget.last_y ?? widget.y) + 10]
  const [x, y] = app.canvas.ds.convertOffsetToCanvas(inside)
  const { left, top } = app.canvas.canvas.getBoundingClientRect()
  return [x + left, y + top]
}"""
SAYS = """() => {
  const shown = [...document.querySelectorAll('.fdb-concepts')]
  const chips = shown.flatMap((each) => [...each.querySelectorAll('.fdb-chip')])
  const says = shown.map((each) => each.querySelector('.fdb-says')?.textContent)
  return { chips: chips.map((chip) => chip.textContent), says: says.join() }
}"""


class Graph:
    """The open graph of a page."""

    def __init__(self, page: Any):
        self.page = page

    def add(self, kind: str, x: int = 0, y: int = 50, **values: Any) -> Any:
        """A new node's id."""
        return self.page.evaluate(ADD, [kind, x, y, values])

    def link(self, origin: Any, output: str | int, target: Any, name: str | int) -> None:
        """Connect an output, by its type or place, with an input, by its name or place."""
        self.page.evaluate(LINK, [origin, output, target, name])

    def wrap(self, *nodes: Any) -> Any:
        """Put nodes into a subgraph; its node's id."""
        return self.page.evaluate(WRAP, list(nodes))

    def set(self, node: Any, **values: Any) -> None:
        """Set attributes of a node, such as its mode."""
        self.page.evaluate("([id, values]) => { Object.assign(app.graph.getNodeById(id), values) }", [node, values])

    def set_widget(self, node: Any, name: str, value: Any) -> None:
        found = (
            "([id, name, value]) => { app.graph.getNodeById(id).widgets.find((w) => w.name === name).value = value }"
        )
        self.page.evaluate(found, [node, name, value])

    def click_widget(self, node: Any, name: str) -> None:
        """Click in the middle of a widget that is drawn on the canvas."""
        self.page.mouse.click(*self.page.evaluate(PLACE, [node, name]))

    def clear(self) -> None:
        self.page.evaluate("() => app.graph.clear()")

    def chain(self, loader: str, x: int = 400, **values: Any) -> tuple[Any, Any, Any]:
        """A mini FLUX, a loader of LoRAs and a Concept Prompt, connected; their ids."""
        base, node, prompt = self.add("LoadMiniFlux"), self.add(loader, x, **values), self.add("ConceptPrompt", x + 400)
        self.link(base, "MODEL", node, "model")
        self.link(base, "CLIP", node, "clip")
        self.link(node, "CLIP", prompt, "clip")
        return base, node, prompt

    def says(self, chip: str = "", line: str | None = None) -> None:
        """Wait until a concept is offered, or none; line: what is said then."""
        found = f"({SAYS})()"
        offered = f"{found}.chips.includes({chip!r})" if chip else f"{found}.chips.length === 0"
        said = "true" if line is None else f"{found}.says === ''" if not line else f"{found}.says.includes({line!r})"
        try:
            self.page.wait_for_function(f"() => {offered} && {said}", timeout=20_000)
        except Exception as error:
            raise AssertionError(f"expected {chip!r}, {line!r}; it says {self.page.evaluate(SAYS)}") from error
