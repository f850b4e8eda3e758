// Concept Prompt in the browser: the LoRA's concepts as buttons, and a word on how the prompt names them.
// All of it is the server's answer about the open graph; what the server cannot know is not shown.
import { app } from '../../scripts/app.js'
import { addStyle, h, section } from './elements.js'
import { setWidget } from './graph.js'
import { linkedPart, linkInto, openPrompt, sourceOf } from './open_graph.js'
import { askConceptPrompt } from './server.js'
import { text } from './texts.js'

const NODE = 'ConceptPrompt'
const LOOK = 400 // milliseconds; what comes before a node changes without telling it
const SHARE = 0.03 // of the page's time for these looks: at large graphs they are rarer
const AGAIN = 3000 // milliseconds until the same is asked again, as files change, too
const HEIGHT = 88 // pixels: buttons and two lines of text; more of them scroll
const ICONS = { present: 'pi-check', differs: 'pi-exclamation-triangle', missing: 'pi-plus' }
const DEMO = 'demo.safetensors' // what `make demo` writes
const shown = new Map() // node -> its watcher
let rest = 0 // when to look again at the earliest

app.registerExtension({
  name: 'FluxDreamBooth.ConceptPrompt',
  nodeCreated(node) {
    if (node.comfyClass === NODE) addConcepts(node)
  },
  setup() {
    addStyle()
    setInterval(look, LOOK)
  }
})

function look() {
  const start = performance.now()
  if (document.hidden || !shown.size || start < rest) return
  const graph = openPrompt(shown)
  for (const [node, watch] of shown) {
    const places = graph.places.filter((place) => place.node === node)
    if (places.length) watch(graph.prompt, places)
  }
  const end = performance.now()
  rest = end + (end - start) / SHARE
}

function addConcepts(node) {
  const element = h('div', { class: 'fdb-concepts' })
  const draw = section(element, (answer, editable) => drawConcepts(node, answer, editable))
  node.addDOMWidget('concepts', 'flux_dreambooth_concepts', element, {
    serialize: false, hideOnZoom: false, getMinHeight: () => HEIGHT, getMaxHeight: () => HEIGHT, getValue: () => '', setValue: () => {}
  })
  node.setSize([Math.max(node.size[0], 340), Math.max(node.size[1], 325)])
  shown.set(node, watcher(draw))
  const removed = node.onRemoved
  node.onRemoved = function (...facts) {
    shown.delete(node)
    return removed?.apply(this, facts)
  }
}

/** Asks the server when the graph has changed, and now and then without that; one question at a time. */
function watcher(draw) {
  let asked, busy = false, next = 0
  return async (prompt, places) => {
    const part = linkedPart(prompt, places.map(({ id }) => id))
    const question = JSON.stringify([part, places.map(({ id }) => id)])
    if (busy || (question === asked && Date.now() < next)) return
    busy = true
    asked = question
    try {
      draw(await askConceptPrompt(part, places.map(({ id }) => id)), Boolean(promptWidget(places[0])))
    } catch (error) {
      draw({ problem: error.status ? error.message : text('training.unreachable') }, false)
    }
    next = Date.now() + AGAIN
    busy = false
  }
}

/** The widget that the prompt is written in; undefined where a node that runs gives it. */
function promptWidget({ frame, node }) {
  const slot = node.inputs?.findIndex(({ name }) => name === 'text') ?? -1
  return linkInto(frame.graph, node, slot) ? sourceOf(frame, node, slot)?.widget : node.widgets?.find(({ name }) => name === 'text')
}

function drawConcepts(node, answer, editable) {
  const { found = [] } = answer
  const chips = found.map((each) => {
    const does = editable && ['differs', 'missing'].includes(each.state)
    return h('button', { class: `fdb-chip fdb-${each.state ?? 'unchecked'}`, type: 'button', disabled: !does, title: tip(each, does), onclick: () => put(node, each) },
      h('i', { class: `pi ${ICONS[each.state] ?? 'pi-tag'}` }), h('span', {}, each.trigger))
  })
  const lines = warnings(answer, editable)
  const good = !lines.length && answer.certain && answer.text !== null && found.some(({ state }) => state === 'present')
  if (good) lines.push(text('concepts.good'))
  return [h('div', { class: 'fdb-chips' }, chips), h('div', { class: `fdb-says ${good ? 'fdb-good' : 'fdb-warning'}` }, lines.map((line) => h('div', {}, line)))]
}

/** What is wrong, as far as the server knows. */
function warnings({ problem, loras = [], missing = [], complete, certain, problems = [], found = [], unknown = [] }, editable) {
  if (problem) return [problem]
  const lines = [
    ...missing.map((lora) => text(lora === DEMO ? 'concepts.demo' : 'concepts.absent', { lora })),
    ...problems.map(({ lora }) => text('concepts.unreadable', { lora })),
    ...unknown.map((name) => text('concepts.unknown', { name })),
    ...found.filter(({ state }) => state === 'differs').map(({ written, trigger }) => text(editable ? 'concepts.differs' : 'concepts.differsElsewhere', { written, trigger }))
  ]
  if (certain && found.length && found.every(({ state }) => state === 'missing')) lines.push(text(editable ? 'concepts.missing' : 'concepts.missingElsewhere'))
  if (complete && !loras.length && !missing.length) lines.push(text('concepts.noLora'))
  if (certain && loras.length && !found.length && !problems.length) lines.push(text('concepts.nothingKnown', { lora: loras.join(', ') }))
  return lines
}

function tip({ name, trigger, pictures, state }, does) {
  const what = pictures === null ? name : text('concepts.pictures', { name, n: pictures })
  const action = state === 'present' ? 'isThere' : does ? (state === 'differs' ? 'correct' : 'insert') : null
  return action ? `${what}\n${text(`concepts.${action}`, { trigger })}` : what
}

/** Insert the trigger at the cursor, or correct the words that were meant to be it. */
function put(node, { trigger, state, written }) {
  const place = openPrompt(shown).places.find((each) => each.node === node)
  const widget = place && promptWidget(place)
  if (!widget) return
  const before = String(widget.value ?? '')
  const now = state === 'differs' && before.includes(written)
    ? before.replace(written, () => trigger)
    : insert(before, trigger, widget.element ?? widget.inputEl)
  setWidget(widget.node ?? node, widget, now)
  app.graph.setDirtyCanvas(true, true)
  rest = 0
  look()
}

function insert(prompt, trigger, area) {
  const at = area?.value === prompt && document.activeElement !== document.body ? area.selectionStart : prompt.length
  const cursor = at || prompt.length
  const [left, right] = [prompt.slice(0, cursor), prompt.slice(cursor)]
  const gap = (side) => side === '' || /^\s|\s$/.test(side) ? '' : ' '
  return left + (/\s$/.test(left) ? '' : gap(left)) + trigger + (/^[\s,.]/.test(right) ? '' : gap(right)) + right
}
