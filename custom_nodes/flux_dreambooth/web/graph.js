// A checkpoint put into the open graph: into a loader of any pack that is there, or a new one that is connected.
import { app } from '../../scripts/app.js'
import { frames, isOff, linkInto, sourceOf } from './open_graph.js'
import { text } from './texts.js'

const OURS = 'LoadFluxDreamBoothLoRA'
const GAP = 60 // pixels between a new node and its neighbours
const TITLE = 30 // height of a node's title bar
const STEP = 40

export const widgetOf = (node, name) => node.widgets?.find((widget) => widget.name === name)

/** Ask the server for its lists again, so that new files are in every loader. */
export async function refreshLists() {
  await app.refreshComboInNodes()
}

/** Put a LoRA into the selected loader, else one of the graph, else into a new one. Returns what to tell the user. */
export async function putIntoGraph(lora) {
  const graph = app.canvas.graph ?? app.graph
  if (!loraLists(graph).some((values) => values.includes(lora))) await refreshLists()
  const slot = chooseSlot(graph, lora)
  graph.beforeChange?.()
  try {
    if (!slot) return addLoader(graph, lora)
    slot.set(lora)
    const checkpoint = widgetOf(slot.node, 'checkpoint')
    if (slot.node.type === OURS && checkpoint) setWidget(slot.node, checkpoint, 'this file')
    return text('training.used', { lora, node: slot.node.title })
  } finally {
    graph.afterChange?.()
    graph.setDirtyCanvas(true, true)
  }
}

/** The place of the LoRA to replace: in the selected loader, else in this graph, else in another one of the page. */
function chooseSlot(graph, lora) {
  const places = frames().flatMap((frame) => (frame.graph?.nodes ?? []).map((node) => ({ frame, node })))
  const loaders = places.map((place) => ({ ...place, slots: slotsOf(place) })).filter(({ slots }) => slots.length)
  const rank = ({ frame, node }) => [
    frame.graph === graph && app.canvas.selected_nodes?.[node.id] === node,
    !isOff(node), frame.graph === graph, node.type === OURS
  ].reduce((sum, yes) => 2 * sum + Number(yes), 0)
  const best = loaders.toSorted((a, b) => rank(b) - rank(a))[0]
  if (!best) return null
  const filled = best.slots.filter(({ value }) => isFile(value))
  return filled.find(({ value }) => runOf(value) === runOf(lora)) ?? filled[0] ?? best.slots[0]
}

/** The places for a LoRA in a node that loads some, [{node, value, set(name)}]; what another node decides is none. */
function slotsOf({ frame, node }) {
  if (!node.outputs?.some(({ type }) => type === 'MODEL' || /LORA_?STACK/i.test(type))) return []
  const slots = (node.widgets ?? []).map((widget) => {
    if (widget.value && typeof widget.value === 'object' && 'lora' in widget.value) {
      return { node, value: widget.value.lora, set: (lora) => { widget.value = { ...widget.value, lora, on: true } } }
    }
    if (!/lora/i.test(widget.name ?? '') || !valuesOf(node, widget).some(isFile)) return null
    const target = writtenIn(frame, node, widget)
    return target && { node, value: String(target.value ?? ''), set: (lora) => setWidget(node, target, lora) }
  }).filter(Boolean)
  if (!slots.length && typeof node.addNewLoraWidget === 'function') { // rgthree's, still empty
    slots.push({ node, value: '', set: (lora) => { node.addNewLoraWidget(lora) } })
  }
  return slots
}

/** The widget that gives a value: the node's own, a primitive's, that of the subgraph around it; null if it is computed. */
function writtenIn(frame, node, widget) {
  const slot = node.inputs?.findIndex((input) => input.widget?.name === widget.name) ?? -1
  return linkInto(frame.graph, node, slot) ? sourceOf(frame, node, slot)?.widget ?? null : widget
}

function valuesOf(node, widget) {
  const values = widget.options?.values
  const list = typeof values === 'function' ? values(widget, node) : values
  return (Array.isArray(list) ? list : Object.keys(list ?? {})).map((value) => value?.content ?? value)
}

const loraLists = (graph) => graph.nodes.flatMap((node) => (node.widgets ?? []).filter(({ name }) => /lora/i.test(name ?? '')).map((widget) => valuesOf(node, widget)))
const isFile = (value) => typeof value === 'string' && /\.(safetensors|sft|pt|ckpt)$/i.test(value)
const runOf = (name) => name.replaceAll('\\', '/').replace(/(-\d{6}|-step\d{8})?\.\w+$/, '')

/** Sets a widget as a user would: its node, the undo history and the page's store of values learn of it. */
export function setWidget(node, widget, value) {
  if (widget.setValue) return widget.setValue(value, { node, canvas: app.canvas })
  widget.value = value // of another pack's own class
  widget.callback?.(value, app.canvas, node)
}

/** A new loader next to the model that it changes, connected between that and what uses it. */
function addLoader(graph, lora) {
  const source = modelSource(graph)
  const clip = source && clipSource(graph, source.node)
  const node = LiteGraph.createNode(OURS)
  const widget = widgetOf(node, 'lora_name')
  setWidget(node, widget, lora)
  node.pos = freePlace(graph, node, source?.node)
  graph.add(node)
  if (source) insert(graph, source, node, 'MODEL', 'model')
  if (clip) insert(graph, clip, node, 'CLIP', 'clip')
  app.canvas.selectNode?.(node)
  const [left, top, width, height] = app.canvas.visible_area
  const seen = node.pos[0] >= left && node.pos[1] >= top && node.pos[0] + node.size[0] <= left + width && node.pos[1] + node.size[1] <= top + height
  if (!seen) app.canvas.centerOnNode(node)
  return text(source ? 'training.connected' : 'training.added', { lora, node: source?.node.title ?? '' })
}

/** The output that gives the graph its model: of the selected node, else the only one at the beginning of a chain. */
function modelSource(graph) {
  const outputs = outputsOf(graph, 'MODEL')
  const selected = outputs.filter(({ node }) => app.canvas.selected_nodes?.[node.id] === node)
  if (selected.length === 1) return selected[0]
  const first = outputs.filter(({ node }) => !node.inputs?.some(({ type }) => type === 'MODEL'))
  const used = first.filter(({ links }) => links.length)
  const found = used.length ? used : first
  return found.length === 1 ? found[0] : null
}

function clipSource(graph, model) {
  const outputs = outputsOf(graph, 'CLIP').filter(({ node }) => !node.inputs?.some(({ type }) => type === 'CLIP') || node === model)
  const used = outputs.filter(({ links }) => links.length)
  const found = used.length ? used : outputs
  return found.find(({ node }) => node === model) ?? (found.length === 1 ? found[0] : null)
}

function outputsOf(graph, type) {
  return graph.nodes.filter((node) => !isOff(node)).flatMap((node) => (node.outputs ?? [])
    .map((output, slot) => ({ node, slot, type: output.type, links: output.links ?? [] }))
    .filter((output) => output.type === type))
}

/** Put a node into all links that start at an output. */
function insert(graph, source, node, type, input) {
  const links = [...source.links].map((id) => graph.getLink?.(id) ?? graph.links[id]).filter(Boolean)
  const out = node.outputs.findIndex((output) => output.type === type)
  for (const { target_id, target_slot, parentId } of links) {
    const target = graph.getNodeById(target_id)
    if (target) node.connect(out, target, target_slot, parentId)
  }
  source.node.connect(source.slot, node, node.inputs.findIndex(({ name }) => name === input))
}

/** The place nearest to the right of a node, or to the middle of the screen, where nothing is. */
function freePlace(graph, node, beside) {
  const [left, top, width, height] = app.canvas.visible_area
  const wish = beside
    ? [beside.pos[0] + beside.size[0] + GAP, beside.pos[1]]
    : [left + width / 2 - node.size[0] / 2, top + height / 2 - node.size[1] / 2]
  const taken = graph.nodes.map(({ pos, size, flags }) => [pos[0], pos[1] - TITLE, size[0], (flags?.collapsed ? 0 : size[1]) + TITLE])
  const isFree = ([x, y]) => taken.every(([a, b, w, h]) => x >= a + w + STEP / 2 || x + node.size[0] + STEP / 2 <= a || y - TITLE >= b + h + STEP / 2 || y + node.size[1] + STEP / 2 <= b)
  for (let ring = 0; ring < 200; ring++) {
    const near = []
    for (let i = -ring; i <= ring; i++) near.push([i, ring], [i, -ring], [ring, i], [-ring, i])
    const free = near.map(([i, j]) => [wish[0] + i * STEP, wish[1] + j * STEP]).filter(isFree)
    if (free.length) return free.toSorted((a, b) => distance(a, wish) - distance(b, wish))[0]
  }
  return wish
}

const distance = ([a, b], [c, d]) => Math.hypot(a - c, b - d)
