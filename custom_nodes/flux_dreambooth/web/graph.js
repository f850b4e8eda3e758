// The open graph: which LoRAs come before a node, and a checkpoint put into the loader.
import { app } from '../../scripts/app.js'
import { text } from './texts.js'

const OURS = 'LoadFluxDreamBoothLoRA'
const LOADERS = [OURS, 'LoraLoader', 'LoraLoaderModelOnly']
const BYPASSED = [2, 4] // LiteGraph's modes "never" and "bypass"

export const widgetOf = (node, name) => node.widgets?.find((widget) => widget.name === name)

/** The names of the LoRAs that are loaded before a node, the first loaded first. */
export function lorasBefore(node) {
  const names = []
  const seen = new Set([node])
  for (const each of seen) {
    const name = each !== node && !BYPASSED.includes(each.mode) ? widgetOf(each, 'lora_name')?.value : undefined
    if (typeof name === 'string' && LOADERS.includes(each.type) && !names.includes(name)) names.unshift(name)
    each.inputs?.forEach((_, slot) => {
      const before = each.getInputNode(slot)
      if (before) seen.add(before)
    })
  }
  return names
}

/** Ask the server for its lists again, so that new files are in every loader. */
export async function refreshLists() {
  await app.refreshComboInNodes()
}

/** Put a LoRA into the selected loader, else the graph's first, else into a new one. Returns what to tell the user. */
export async function putIntoGraph(lora) {
  const graph = app.canvas.graph ?? app.graph
  const loaders = graph.nodes.filter((node) => LOADERS.includes(node.type) && widgetOf(node, 'lora_name'))
  const selected = loaders.find((node) => app.canvas.selected_nodes?.[node.id])
  const loader = selected ?? loaders.find((node) => node.type === OURS) ?? loaders[0]
  const node = loader ?? addLoader(graph)
  const widget = widgetOf(node, 'lora_name')
  if (!widget.options.values.includes(lora)) await refreshLists()
  graph.beforeChange?.()
  setWidget(node, widget, lora)
  const checkpoint = widgetOf(node, 'checkpoint')
  if (checkpoint) setWidget(node, checkpoint, 'this file')
  graph.afterChange?.()
  graph.setDirtyCanvas(true, true)
  return text(loader ? 'training.used' : 'training.added', { lora, node: node.title })
}

function setWidget(node, widget, value) {
  widget.value = value
  widget.callback?.(value, app.canvas, node)
}

function addLoader(graph) {
  const node = window.LiteGraph.createNode(OURS)
  const [left, top, width, height] = app.canvas.visible_area
  node.pos = [left + width / 2 - node.size[0] / 2, top + height / 2 - node.size[1] / 2]
  graph.add(node)
  return node
}
