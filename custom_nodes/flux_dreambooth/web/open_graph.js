// The open graph in the format of POST /prompt, for the server to look at: subgraphs are flattened, links followed to
// the nodes that run. Unlike the page's own graphToPrompt, nothing is uploaded, drawn or asked of a widget but its value.
import { app } from '../../scripts/app.js'

const NEVER = 2
const BYPASS = 4 // LiteGraph's modes
const LONGEST = 20000 // characters of a value; a longer one, such as a painted picture, is left out

/** Every graph on the page once for each place it is used in: {graph, path, owner, parent}, the root first. */
export function frames() {
  const root = { graph: app.rootGraph ?? app.graph, path: [], owner: null, parent: null }
  const found = [root]
  for (const frame of found) {
    for (const node of frame.graph?.nodes ?? []) {
      if (!isSubgraph(node) || isOff(node)) continue
      if (frame.path.length < 20) found.push({ graph: node.subgraph, path: [...frame.path, node.id], owner: node, parent: frame })
    }
  }
  return found
}

/**
 * {prompt, places}: all nodes that run, by their ids in a prompt, and where each node of the page is, [{id, frame, node}].
 * always: has(node) of those that are in the prompt even if they are switched off.
 */
export function openPrompt(always = new Set()) {
  const prompt = {}
  const places = []
  for (const frame of frames()) {
    for (const node of frame.graph?.nodes ?? []) {
      const id = [...frame.path, node.id].join(':')
      places.push({ id, frame, node })
      if (isSubgraph(node) || node.isVirtualNode || (isOff(node) && !always.has(node))) continue
      prompt[id] = entry(frame, node)
    }
  }
  return { prompt, places }
}

/** The part of a prompt that is linked with some of its nodes, in either direction. */
export function linkedPart(prompt, ids) {
  const neighbours = new Map(Object.keys(prompt).map((id) => [id, []]))
  for (const [id, { inputs }] of Object.entries(prompt)) {
    for (const value of Object.values(inputs)) {
      if (!Array.isArray(value) || !neighbours.has(value[0])) continue
      neighbours.get(id).push(value[0])
      neighbours.get(value[0]).push(id)
    }
  }
  const reached = new Set(ids)
  for (const id of reached) neighbours.get(id)?.forEach((each) => reached.add(each))
  return Object.fromEntries([...reached].filter((id) => prompt[id]).map((id) => [id, prompt[id]]))
}

/** A node as an entry of a prompt. */
export function entry(frame, node) {
  const inputs = {}
  for (const widget of node.widgets ?? []) {
    if (!widget.name || widget.options?.serialize === false) continue
    const value = plain(widget.value)
    if (value !== undefined) inputs[widget.name] = Array.isArray(value) ? { __value__: value } : value
  }
  node.inputs?.forEach((input, slot) => {
    if (!linkInto(frame.graph, node, slot)) return
    const source = sourceOf(frame, node, slot)
    if (source?.id !== undefined) inputs[input.name] = [source.id, source.slot]
    else if (source) inputs[input.name] = plain(source.widget?.value) ?? null
    else if (!input.widget) delete inputs[input.name]
  })
  return { class_type: node.comfyClass ?? node.type, inputs }
}

/** What an input gets: {id, slot, node} of a node that runs, {widget} of a node of the page alone, or undefined. */
export function sourceOf(frame, node, slot, seen = new Set()) {
  const input = node.inputs?.[slot]
  const link = linkInto(frame.graph, node, slot)
  const place = `${frame.path.join(':')}/${node.id}/${slot}`
  if (!link || seen.has(place)) return undefined
  seen.add(place)
  return originOf(frame, link, input.type, seen)
}

function originOf(frame, link, type, seen) {
  if (frame.owner && link.origin_id === frame.graph.inputNode?.id) {
    const outer = frame.owner.inputs?.[link.origin_slot]
    if (linkInto(frame.parent.graph, frame.owner, link.origin_slot)) return sourceOf(frame.parent, frame.owner, link.origin_slot, seen)
    const widget = outer && (frame.owner.getWidgetFromSlot?.(outer) ?? frame.owner.widgets?.find(({ name }) => name === outer.widget?.name))
    return widget ? { widget } : undefined
  }
  const origin = frame.graph.getNodeById(link.origin_id)
  return origin ? outputOf(frame, origin, link.origin_slot, type, seen) : undefined
}

function outputOf(frame, node, slot, type, seen) {
  if (node.mode === NEVER) return undefined
  if (node.mode === BYPASS) {
    const input = bypassInput(node, slot, type)
    return input < 0 ? undefined : sourceOf(frame, node, input, seen)
  }
  if (isSubgraph(node)) return subgraphOutput(frame, node, slot, type, seen)
  if (!node.isVirtualNode) return { id: [...frame.path, node.id].join(':'), slot, node, frame }
  if (node.type === 'PrimitiveNode') return { widget: node.widgets?.[0] }
  const setter = setterOf(frame, node)
  if (setter) return sourceOf(setter.frame, setter.node, 0, seen)
  if (node.inputs?.[slot]) return sourceOf(frame, node, slot, seen)
  return undefined
}

function subgraphOutput(frame, node, slot, type, seen) {
  const inner = { graph: node.subgraph, path: [...frame.path, node.id], owner: node, parent: frame }
  const output = node.subgraph.outputs?.[slot]
  const link = linkOf(node.subgraph, output?.linkIds?.[0])
  return link && inner.path.length < 20 ? originOf(inner, link, type, seen) : undefined
}

/** The node that sets what a "Get" node of KJNodes and its kin gives, found by its name in the graph or around it. */
function setterOf(frame, node) {
  if (!/get_?node$/i.test(node.type)) return undefined
  const kind = node.type.replace(/get/i, (word) => word[0] === 'G' ? 'Set' : 'set')
  const name = node.widgets?.[0]?.value
  for (let each = frame; each && name; each = each.parent) {
    const found = each.graph.nodes.find((other) => other.type === kind && other.widgets?.[0]?.value === name)
    if (found) return { frame: each, node: found }
  }
  return undefined
}

/** The input that a bypassed node passes on to an output, as the page chooses it. */
function bypassInput(node, slot, type) {
  const inputs = node.inputs ?? []
  const fits = (input) => input && LiteGraph.isValidConnection(input.type, node.outputs?.[slot]?.type) && LiteGraph.isValidConnection(input.type, type)
  if (type === '*' || type === '') return inputs.length > slot ? slot : inputs.length - 1 < 0 ? -1 : 0
  if (fits(inputs[slot])) return slot
  const exact = inputs.findIndex((input) => input.type === type)
  return exact >= 0 ? exact : inputs.findIndex(fits)
}

const isSubgraph = (node) => Boolean(node.isSubgraphNode?.())
export const isOff = (node) => node.mode === NEVER || node.mode === BYPASS

/** The link that gives an input its value, drawn or broadcast; undefined if there is none. */
export function linkInto(graph, node, slot) {
  const id = node.inputs?.[slot]?.link
  return id === null || id === undefined ? broadcastTo(graph, node, slot) : linkOf(graph, id)
}

/** What "Anything Everywhere" of the pack cg-use-everywhere gives to an open input: the pack lists its links in the graph. */
function broadcastTo(graph, node, slot) {
  const links = graph?.extra?.ue_links
  if (!Array.isArray(links)) return undefined
  const found = links.find(({ downstream, downstream_slot }) => String(downstream) === String(node.id) && downstream_slot === slot)
  const sender = found && graph.getNodeById(found.controller)
  const isThere = sender?.constructor.nodeData && !isOff(sender) // lists in files outlive the pack and its nodes
  return isThere ? { origin_id: found.upstream, origin_slot: found.upstream_slot } : undefined
}

function linkOf(graph, id) {
  if (id === null || id === undefined || !graph) return undefined
  return graph.getLink?.(id) ?? graph.links?.get?.(id) ?? graph.links?.[id]
}

/** A widget's value if it is short JSON, else undefined. */
function plain(value) {
  if (value === null || ['number', 'boolean'].includes(typeof value)) return value
  if (typeof value === 'string') return value.length <= LONGEST ? value : undefined
  if (typeof value !== 'object') return undefined
  try {
    const text = JSON.stringify(value)
    return text && text.length <= LONGEST ? JSON.parse(text) : undefined
  } catch {
    return undefined // goes round, or is no JSON
  }
}
