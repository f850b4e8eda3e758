// Concept Prompt in the browser: the LoRA's concepts as buttons, and a word on how the prompt names them.
import { app } from '../../scripts/app.js'
import { addStyle, h, section } from './elements.js'
import { lorasBefore, widgetOf } from './graph.js'
import { checkPrompt } from './server.js'
import { text } from './texts.js'

const NODE = 'ConceptPrompt'
const FOLLOW = "(the loader's)"
const LOOK = 400 // milliseconds; what comes before a node changes without telling it
const HEIGHT = 88 // pixels: buttons and two lines of text; more of them scroll
const ICONS = { present: 'pi-check', differs: 'pi-exclamation-triangle', missing: 'pi-plus' }
const shown = new Set()

app.registerExtension({
  name: 'FluxDreamBooth.ConceptPrompt',
  nodeCreated(node) {
    if (node.comfyClass === NODE) addConcepts(node)
  },
  setup() {
    addStyle()
    setInterval(() => { if (!document.hidden) shown.forEach((look) => look()) }, LOOK)
  }
})

function addConcepts(node) {
  const element = h('div', { class: 'fdb-concepts' })
  const draw = section(element, (answer) => drawConcepts(node, answer))
  const look = watcher(node, draw)
  node.addDOMWidget('concepts', 'flux_dreambooth_concepts', element, {
    serialize: false, hideOnZoom: false, getMinHeight: () => HEIGHT, getMaxHeight: () => HEIGHT, getValue: () => '', setValue: () => {}
  })
  node.setSize([Math.max(node.size[0], 400), Math.max(node.size[1], 325)])
  shown.add(look)
  const removed = node.onRemoved
  node.onRemoved = function (...facts) {
    shown.delete(look)
    return removed?.apply(this, facts)
  }
}

/** Asks the server again when the prompt or the LoRAs have changed, one question at a time. */
function watcher(node, draw) {
  let asked, busy = false
  return async () => {
    const chosen = widgetOf(node, 'lora_name')?.value
    const loras = chosen === FOLLOW ? lorasBefore(node) : [chosen]
    const prompt = promptOf(node)
    const question = JSON.stringify([loras, prompt])
    if (busy || question === asked) return
    busy = true
    asked = question
    try {
      draw({ loras, ...(loras.length ? await checkPrompt(loras, prompt) : {}) })
    } catch (error) {
      draw({ loras, error: error.message })
    }
    busy = false
  }
}

const promptOf = (node) => String(widgetOf(node, 'text')?.value ?? '')

function drawConcepts(node, { loras, found = [], unknown = [], error }) {
  const chips = found.map((each) => h('button', {
    class: `fdb-chip fdb-${each.state}`, type: 'button', title: tip(each), onclick: () => put(node, each)
  }, h('i', { class: `pi ${ICONS[each.state]}` }), each.trigger))
  const lines = [error, ...unknown.map((name) => text('concepts.unknown', { name })), ...warnings(found)].filter(Boolean)
  if (!loras.length) lines.push(text('concepts.noLora'))
  else if (!found.length && !error) lines.push(text('concepts.nothingKnown', { lora: loras.join(', ') }))
  const good = !lines.length
  if (good) lines.push(text('concepts.good'))
  return [h('div', { class: 'fdb-chips' }, chips), h('div', { class: `fdb-says ${good ? 'fdb-good' : 'fdb-warning'}` }, lines.map((line) => h('div', {}, line)))]
}

function warnings(found) {
  const differing = found.filter(({ state }) => state === 'differs').map(({ written, trigger }) => text('concepts.differs', { written, trigger }))
  const missing = found.length && found.every(({ state }) => state === 'missing') ? [text('concepts.missing')] : []
  return [...differing, ...missing]
}

function tip({ name, trigger, pictures, state }) {
  const what = pictures === null ? name : text('concepts.pictures', { name, n: pictures })
  return `${what}\n${text(`concepts.${state === 'present' ? 'isThere' : state === 'differs' ? 'correct' : 'insert'}`, { trigger })}`
}

/** Insert the trigger at the cursor, or correct the words that were meant to be it. */
function put(node, { trigger, state, written }) {
  const widget = widgetOf(node, 'text')
  const before = promptOf(node)
  if (state === 'present') return
  const replaces = state === 'differs' && before.includes(written)
  const now = replaces ? before.replace(written, () => trigger) : insert(before, trigger, widget.element)
  widget.value = now
  widget.callback?.(now, app.canvas, node)
  app.graph.setDirtyCanvas(true, true)
}

function insert(prompt, trigger, area) {
  const at = area?.value === prompt && document.activeElement !== document.body ? area.selectionStart : prompt.length
  const cursor = at || prompt.length
  const [left, right] = [prompt.slice(0, cursor), prompt.slice(cursor)]
  const gap = (side) => side === '' || /^\s|\s$/.test(side) ? '' : ' '
  return left + (/\s$/.test(left) ? '' : gap(left)) + trigger + (/^[\s,.]/.test(right) ? '' : gap(right)) + right
}
